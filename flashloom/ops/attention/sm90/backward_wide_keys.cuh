#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"
#include "flashloom/ops/attention/sm90/backward_wide_consume.cuh"

// dK and dV of heads with up to 256 columns.
//
//   values   S' = K Q^T (next)   P -> shared   exp2 | dV += P dO      P and dS are keys x queries,
//   keys     dP' = V dO^T (next)    P ->  dS        | dK += dS Q      A operands from registers

namespace flashloom::sm90 {

template <class Shape>
__device__ __forceinline__ void wide_load(char* tile, const CUtensorMap* map, uint64_t* full,
                                          int32_t row, int32_t head, int32_t batch, uint64_t hint) {
#pragma unroll
  for (int p = 0; p < Shape::kPanels; ++p) {
    cuda::tma_load_4d(tile + p * cuda::panel_bytes(64), map, full, p * 64, row, head, batch, hint);
  }
}

/// Loads the block's keys or values and streams the tiles of q (with lse) or dout (with delta).
template <class Shape>
__device__ __forceinline__ void wide_produce(const BackwardParams& params, const BackwardWork& work,
                                             const CUtensorMap* own_map, char* own_tile,
                                             uint64_t* own_full, const CUtensorMap* map,
                                             const float* rows, char* tiles, float* row_tiles,
                                             uint64_t* full, uint64_t* empty) {
  using namespace cuda;
  mbarrier_arrive_expect(own_full, Shape::kTileBytes);
  wide_load<Shape>(own_tile, own_map, own_full, work.sequence.key_first + work.key, work.head,
                   params.problem.cu_key != nullptr ? 0 : work.batch, kEvictNormal);
  const int32_t batch = params.problem.cu_query != nullptr ? 0 : work.batch;
  PipelineState<Shape::kStages> place;
  BackwardWalk<Shape> walk;
  for (bool more = walk.start(params, work); more; more = walk.advance(params, work)) {
    const int64_t first = first_place(params.problem, work.sequence, work.batch, walk.head,
                                      params.query_tiles, Shape::kQueries);
    mbarrier_wait(&empty[place.stage], place.parity ^ 1, {"a producer", "q_empty or dout_empty"});
    mbarrier_arrive_expect(&full[place.stage], Shape::kTileBytes + Shape::kRowBytes);
    wide_load<Shape>(tiles + place.stage * Shape::kTileBytes, map, &full[place.stage],
                     work.sequence.query_first + walk.t * Shape::kQueries, walk.head, batch,
                     kEvictLast);
    bulk_load(row_tiles + place.stage * Shape::kQueries, rows + (first + walk.t) * Shape::kQueries,
              Shape::kRowBytes, &full[place.stage]);
    place.advance();
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward_kernel_keys(const __grid_constant__ BackwardParams params,
                                   const __grid_constant__ BackwardMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const WideKeysShared<Shape> shared{memory};
  WideKeysBarriers<Shape>& barriers = shared.barriers();
  const BackwardWork work = backward_work<Shape>(params, static_cast<int32_t>(blockIdx.x));
  // The last block waits for the kernel before, so that whoever waits for this one has waited for
  // that one. Rows are there: no block of that kernel lets this one start before.
  if (blockIdx.x == gridDim.x - 1) {
    wait_for_earlier_kernel();
  }
  if (work.key >= work.sequence.key_rows) {
    return;
  }
  if (threadIdx.x == 0) {
    begin_backward_block(maps, [&] {
      mbarrier_init(&barriers.k_full, 1);
      mbarrier_init(&barriers.v_full, 1);
      init_ring(barriers.q_full, barriers.q_empty, 1, 8);
      init_ring(barriers.dout_full, barriers.dout_empty, 1, 8);
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(&barriers.weights_full[i], 4);
        mbarrier_init(&barriers.weights_empty[i], 4);
      }
    });
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<24>();
    if (work.begin < work.end) {
      if (threadIdx.x == 0) {
        wide_produce<Shape>(params, work, &maps.k, shared.k(), &barriers.k_full, &maps.q,
                            params.lse, shared.q(0), shared.lse(0), barriers.q_full,
                            barriers.q_empty);
      } else if (threadIdx.x == 32) {
        wide_produce<Shape>(params, work, &maps.v, shared.v(), &barriers.v_full, &maps.dout,
                            params.delta, shared.dout(0), shared.delta(0), barriers.dout_full,
                            barriers.dout_empty);
      }
    }
  } else {
    register_limit_raise<240>();
    if (warpgroup == 1) {
      WideKeysConsumer<Shape, true> consumer(params, work, shared);
      consumer.run();
      consumer.store(params.dv, Shape::kAdjusts ? params.score.keep : 1, params.value_columns);
    } else {
      WideKeysConsumer<Shape, false> consumer(params, work, shared);
      consumer.run();
      consumer.store(params.dk, params.scale, params.columns);
    }
  }
}

}  // namespace flashloom::sm90
