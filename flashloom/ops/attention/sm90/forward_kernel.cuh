#pragma once

#include "flashloom/ops/attention/sm90/forward_pipeline.cuh"
#include "flashloom/ops/attention/sm90/forward_produce.cuh"

// Forward attention on Hopper. A producer warpgroup streams tiles of keys and values through shared
// memory; each consumer warpgroup owns 64 queries. docs/kernels/attention.md has the picture.

namespace flashloom::sm90 {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ ForwardParams params,
                             const __grid_constant__ CUtensorMap q,
                             const __grid_constant__ CUtensorMap k,
                             const __grid_constant__ CUtensorMap v,
                             const __grid_constant__ CUtensorMap out) {
  using namespace cuda;
  extern __shared__ __align__(1024) char shared[];
  static_assert(sizeof(ForwardBarriers<Shape>) <= Shape::kBarrierBytes);
  auto& barriers = *reinterpret_cast<ForwardBarriers<Shape>*>(shared);
  char* q_tiles = shared + Shape::kBarrierBytes;
  char* k_tiles = q_tiles + Shape::kQStages * Shape::kQBytes;
  char* v_tiles = k_tiles + Shape::kStages * Shape::kTileBytes;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    prefetch_tensor_map(&out);
    constexpr uint32_t kWarps = 4 * Shape::kGroups;
    for (int i = 0; i < Shape::kQStages; ++i) {
      mbarrier_init(&barriers.q_full[i], 1);
      mbarrier_init(&barriers.q_empty[i], kWarps);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      mbarrier_init(&barriers.k_full[i], 1);
      mbarrier_init(&barriers.k_empty[i], kWarps);
      mbarrier_init(&barriers.v_full[i], 1);
      mbarrier_init(&barriers.v_empty[i], kWarps);
      mbarrier_init(&barriers.v_border[i], 1);
    }
    for (uint32_t i = 0; i < kForwardSlots; ++i) {
      mbarrier_init(&barriers.work_full[i], 1);
      mbarrier_init(&barriers.work_empty[i], kWarps);
    }
    mbarrier_init(&barriers.draw, 1);
    mbarrier_init_fence();
    begin_debug_block();
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const uint32_t warp = threadIdx.x / 32;
    if (warp == 0) {
      forward_produce_queries<Shape>(params, &q, q_tiles, barriers);
    } else if (warp == 1) {
      forward_produce_keys<Shape, false>(params, &k, k_tiles, barriers);
    } else if (warp == 2) {
      forward_produce_keys<Shape, true>(params, &v, v_tiles, barriers);
    } else {
      forward_produce_work<Shape>(params, barriers);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    ForwardPipeline<Shape>(params, &out, shared_address(q_tiles), shared_address(k_tiles),
                           shared_address(v_tiles), barriers, warpgroup - 1)
        .run();
    // Shared memory must outlive the copies out of it.
    bulk_wait<0>();
  }
}

}  // namespace flashloom::sm90
