#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"
#include "flashloom/ops/attention/sm90/forward_band_consumer.cuh"
#include "flashloom/ops/attention/sm90/forward_band_produce.cuh"

// Forward attention where the queries of a tile of 64 see keys of three neighbouring tiles: windows
// of up to 64 keys to both sides, or of up to 128 to one. A block walks neighbouring tiles of one
// head, so that each tile of keys and values enters shared memory once, and consumer warpgroups
// take tiles of queries in turn. All scores of a row are there at once: the softmax is exact, in
// one pass. Nothing but inputs and results moves; the results are the same bits every time.
//
//   keys     ... j-2   j-1    j    j+1   j+2 ...     a ring that all warpgroups read
//   group 0           [      tile j     ]
//   group 1                 [     tile j+1    ]

namespace flashloom::sm90 {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward_kernel_band(const __grid_constant__ ForwardBandParams params,
                                  const __grid_constant__ CUtensorMap q,
                                  const __grid_constant__ CUtensorMap k,
                                  const __grid_constant__ CUtensorMap v,
                                  const __grid_constant__ CUtensorMap out) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const ForwardBandShared<Shape> shared{memory};
  ForwardBandBarriers<Shape>& barriers = shared.barriers();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    prefetch_tensor_map(&out);
    constexpr uint32_t kWarps = 4 * Shape::kGroups;
    init_ring(barriers.q_full, barriers.q_empty, 1, 4);
    init_ring(barriers.full, barriers.empty, 1, kWarps);
    // The thread that loads, the warp that clears, and the consumers read segments.
    init_ring(barriers.segment_full, barriers.segment_empty, 1, kWarps + 2);
    for (uint64_t& barrier : barriers.border) {
      mbarrier_init(&barrier, 1);
    }
    mbarrier_init_fence();
    begin_debug_block();
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const uint32_t warp = threadIdx.x / 32;
    if (warp == 0) {
      forward_band_find<Shape>(params, barriers);
    } else if (warp == 3) {
      forward_band_clear<Shape>(shared);
    } else if (threadIdx.x == 32) {
      forward_band_load<Shape>(params, &q, &k, &v, shared);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    ForwardBandConsumer<Shape>(params, &out, shared).run(static_cast<uint32_t>(warpgroup - 1));
    // Shared memory must outlive the copies out of it.
    bulk_wait<0>();
  }
}

}  // namespace flashloom::sm90
