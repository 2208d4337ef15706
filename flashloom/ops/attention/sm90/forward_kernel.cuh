#pragma once

#include "flashloom/ops/attention/sm90/forward_pipeline.cuh"
#include "flashloom/ops/attention/sm90/forward_produce.cuh"
#include "flashloom/ops/attention/sm90/forward_produce_team.cuh"
#include "flashloom/ops/attention/sm90/forward_produce_work.cuh"

// Forward attention on Hopper. A producer warpgroup streams tiles of keys and values through shared
// memory; each consumer warpgroup owns 64 queries. docs/kernels/attention.md has the picture.

namespace flashloom::sm90 {

template <class Shape>
__device__ __forceinline__ void forward_init(ForwardBarriers<Shape>& barriers) {
  using namespace cuda;
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
}

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
  // Where two teams share the block. A shuffle tells the compiler that warps do not diverge on it.
  int32_t team_warp = 0;
  int32_t team = 0;
  if constexpr (Shape::kTeams > 1) {
    team_warp = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 32), 0);
    team = team_warp < 4 ? team_warp / 2 : (team_warp / 4 - 1) / Shape::kGroups;
  }
  char* own = shared + team * Shape::kSharedBytes;
  auto& barriers = *reinterpret_cast<ForwardBarriers<Shape>*>(own);
  char* q_tiles = own + Shape::kBarrierBytes;
  char* k_tiles = q_tiles + Shape::kQStages * Shape::kQBytes;
  char* v_tiles = k_tiles + Shape::kStages * Shape::kTileBytes;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    prefetch_tensor_map(&out);
    for (int i = 0; i < Shape::kTeams; ++i) {
      forward_init(*reinterpret_cast<ForwardBarriers<Shape>*>(shared + i * Shape::kSharedBytes));
    }
    mbarrier_init_fence();
    begin_debug_block();
  }
  __syncthreads();
  const int32_t warpgroup =
      Shape::kTeams > 1 ? team_warp / 4
                        : __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const uint32_t warp = threadIdx.x / 32;
    if constexpr (Shape::kTeams > 1) {
      if (team_warp % 2 == 0) {
        // Blocks get their first team's tiles before any gets a second.
        const int32_t first = block + team * static_cast<int32_t>(gridDim.x);
        PipelineState<Shape::kQStages> place;
        forward_produce_work<Shape>(
            params, barriers, first, [&](const ForwardWork& work, bool more) {
              load_queries<Shape>(params, &q, q_tiles, barriers, work, more, place);
            });
      } else {
        forward_produce_stream<Shape>(params, &k, &v, k_tiles, v_tiles, barriers);
      }
    } else if (warp == 0) {
      forward_produce_queries<Shape>(params, &q, q_tiles, barriers);
    } else if (warp == 1) {
      forward_produce_keys<Shape, false>(params, &k, k_tiles, barriers);
    } else if (warp == 2) {
      forward_produce_keys<Shape, true>(params, &v, v_tiles, barriers);
    } else {
      forward_produce_work<Shape>(params, barriers, block, [](const ForwardWork&, bool) {});
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    ForwardPipeline<Shape>(params, &out, shared_address(q_tiles), shared_address(k_tiles),
                           shared_address(v_tiles), barriers, warpgroup - 1 - team * Shape::kGroups)
        .run();
    // Shared memory must outlive the copies out of it.
    bulk_wait<0>();
  }
}

}  // namespace flashloom::sm90
