#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_band_consume.cuh"
#include "flashloom/ops/attention/sm90/backward_band_produce.cuh"

// Backward attention where a query sees keys of its own tile of 64 and of the two beside it:
// windows of up to 64 keys to both sides. A block walks a run of neighbouring tiles; each tile of
// queries, keys and values enters shared memory once, delta is computed on the way, and the sums of
// dQ wait for the next tile of keys in registers and shared memory: nothing but inputs and results
// moves, and there is no workspace. The results are the same bits every time.
//
//   keys j:   queries j-1   dQ from shared memory, complete: stored
//             queries j     dQ from registers, to shared memory
//             queries j+1   dQ begins, in registers
//
// A run computes dQ of its own tiles, so it also looks at the keys before it and behind it. It goes
// on from the last tile of a sequence to the first of the next one, so that all blocks have as
// many.

namespace flashloom::sm90 {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    attention_backward_kernel_band(const __grid_constant__ BandParams params,
                                   const __grid_constant__ BackwardMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const BandShared<Shape> shared{memory};
  BandBarriers<Shape>& barriers = shared.barriers();
  const BandWork found = band_work<Shape>(params, static_cast<int32_t>(blockIdx.x));
  if (found.first >= found.end) {
    return;
  }
  if (threadIdx.x == 0) {
    for (int role = 0; role < kBandRoles; ++role) {
      shared.work(static_cast<BandRole>(role)) = found;
    }
    begin_backward_block(maps, [&] {
      init_ring(barriers.q_full, barriers.q_empty, 1, 1);
      init_ring(barriers.k_full, barriers.k_empty, 1, 1);
      mbarrier_init(&barriers.out_full, 1);
      mbarrier_init(&barriers.out_empty, 1);
      for (int i = 0; i < Shape::kQueryStages; ++i) {
        mbarrier_init(&barriers.rows_full[i], 1);
      }
    });
  }
  __syncthreads();
  const int32_t warp = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 32), 0);
  if (warp < 4) {
    register_limit_lower<Shape::kProducerRegisters>();
    if (warp == 2) {
      band_rows<Shape>(params, shared);
    } else if (threadIdx.x == 0) {
      band_load<Shape>(params, shared, maps);
    } else if (threadIdx.x == 32) {
      band_load_out<Shape>(params, shared);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    BandConsumer<Shape> consumer(params, shared);
    consumer.run();
  }
}

}  // namespace flashloom::sm90
