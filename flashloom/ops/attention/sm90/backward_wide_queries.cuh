#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"
#include "flashloom/ops/attention/sm90/backward_wide_queries_consume.cuh"

// dQ of heads with up to 256 columns: 64 queries a warpgroup, which walks tiles of 64 keys. Scores
// are queries x keys, so that dS is the A operand of dQ += dS K straight from registers.
//
//   S' = Q K^T (next) | dP = dO V^T   exp2 | dS | dQ += dS K

namespace flashloom::sm90 {

/// Loads the block's queries or their dout and streams keys or values.
template <class Shape, int kStages>
__device__ __forceinline__ void wide_queries_produce(const QueriesParams& params,
                                                     const QueriesWork& work,
                                                     const CUtensorMap* own_map, char* own_tile,
                                                     uint64_t* own_full, const CUtensorMap* map,
                                                     char* tiles, uint64_t* full, uint64_t* empty) {
  using namespace cuda;
  const Problem& problem = params.problem;
  mbarrier_arrive_expect(own_full, Shape::kQueryBytes);
#pragma unroll
  for (int p = 0; p < Shape::kPanels; ++p) {
    tma_load_4d(own_tile + p * panel_bytes(Shape::kQueries), own_map, own_full, p * 64,
                work.sequence.query_first + work.query, work.head,
                problem.cu_query != nullptr ? 0 : work.batch);
  }
  const int32_t head = work.head / problem.heads_per_key;
  const int32_t batch = problem.cu_key != nullptr ? 0 : work.batch;
  PipelineState<kStages> place;
  for (int32_t tile = work.begin; tile < work.end; ++tile) {
    mbarrier_wait(&empty[place.stage], place.parity ^ 1, {"a producer", "k_empty or v_empty"});
    mbarrier_arrive_expect(&full[place.stage], Shape::kKeyBytes);
#pragma unroll
    for (int p = 0; p < Shape::kPanels; ++p) {
      tma_load_4d(tiles + place.stage * Shape::kKeyBytes + p * panel_bytes(Shape::kKeys), map,
                  &full[place.stage], p * 64, work.sequence.key_first + tile * Shape::kKeys, head,
                  batch, kEvictLast);
    }
    place.advance();
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward_kernel_queries(const __grid_constant__ QueriesParams params,
                                      const __grid_constant__ BackwardMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const WideQueriesShared<Shape> shared{memory};
  WideQueriesBarriers<Shape>& barriers = shared.barriers();
  const QueriesWork work = queries_work<Shape>(params, static_cast<int32_t>(blockIdx.x));
  if (work.query >= work.sequence.query_rows) {
    wait_for_earlier_kernel();  // so that the next kernel starts behind it
    return;
  }
  if (threadIdx.x == 0) {
    begin_backward_block(maps, [&] {
      mbarrier_init(&barriers.q_full, 1);
      mbarrier_init(&barriers.dout_full, 1);
      init_ring(barriers.k_full, barriers.k_empty, 1, 8);
      init_ring(barriers.v_full, barriers.v_empty, 1, 8);
    });
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<24>();
    if (work.begin < work.end) {
      if (threadIdx.x == 0) {
        wide_queries_produce<Shape, Shape::kKeyStages>(params, work, &maps.q, shared.q(),
                                                       &barriers.q_full, &maps.k, shared.k(0),
                                                       barriers.k_full, barriers.k_empty);
      } else if (threadIdx.x == 32) {
        wide_queries_produce<Shape, Shape::kValueStages>(params, work, &maps.dout, shared.dout(),
                                                         &barriers.dout_full, &maps.v, shared.v(0),
                                                         barriers.v_full, barriers.v_empty);
      }
    }
  } else {
    register_limit_raise<240>();
    wait_for_earlier_kernel();
    let_next_kernel_start();
    wide_queries_consume<Shape>(params, work, shared, warpgroup - 1);
  }
}

}  // namespace flashloom::sm90
