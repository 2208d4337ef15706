#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/ops/attention/sm90/backward_near_keys.cuh"
#include "flashloom/ops/attention/sm90/backward_near_queries.cuh"

// Backward attention where rows see few keys: windows, short sequences. Blocks of one warpgroup,
// several a multiprocessor, each with 64 keys (dK and dV) or 64 queries (dQ) of its own. Both kinds
// compute the scores; dQ never lies in memory as f32, whose clearing, adding and reading would cost
// more than everything else. Blocks of the same rows are neighbours, so that one reads from the L2
// cache what the other has fetched. The results are the same bits every time.

namespace flashloom::sm90 {

/// Blocks of a key-value head's tile: one with its keys, one for each of its query heads.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    attention_backward_kernel_near(const __grid_constant__ NearParams params,
                                   const __grid_constant__ BackwardMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const NearShared<Shape> shared{memory};
  // Kinds of a tile, tiles, key-value heads: no divisions before the first load.
  const auto part = static_cast<int32_t>(blockIdx.x);
  const auto tile = static_cast<int32_t>(blockIdx.y);
  const auto head = static_cast<int32_t>(blockIdx.z);
  const bool last =
      blockIdx.x == gridDim.x - 1 && blockIdx.y == gridDim.y - 1 && blockIdx.z == gridDim.z - 1;
  if (threadIdx.x == 0) {
    begin_backward_block(maps, [&] {
      mbarrier_init(shared.own_full(), 1);
      for (int i = 0; i < Shape::kStages; ++i) {
        mbarrier_init(shared.full(i), 1);
      }
    });
  }
  if (last && threadIdx.x == 0) {
    wait_for_earlier_kernel();  // so that whoever waits for this kernel has waited for that one
  }
  if (part == 0) {
    if (tile >= params.keys.key_tiles || head >= params.key_heads) {
      return;
    }
    const BackwardWork work = backward_work_at<Shape>(params.keys, head, tile);
    if (threadIdx.x == 0) {
      shared.template work<BackwardWork>() = work;
    }
    __syncthreads();
    if (work.key < work.sequence.key_rows) {
      near_keys<Shape>(params.keys, shared.template work<BackwardWork>(), shared, maps);
    }
    return;
  }
  const int32_t query_head = head * params.keys.problem.heads_per_key + part - 1;
  if (tile >= params.queries.blocks || query_head >= params.heads) {
    return;
  }
  const QueriesWork work = queries_work_at<Shape>(params.queries, query_head, tile);
  if (threadIdx.x == 0) {
    shared.template work<QueriesWork>() = work;
  }
  __syncthreads();
  if (work.query < work.sequence.query_rows) {
    near_queries<Shape>(params.queries, shared.template work<QueriesWork>(), shared, maps);
  }
}

}  // namespace flashloom::sm90
