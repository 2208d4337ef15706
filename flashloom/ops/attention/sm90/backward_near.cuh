#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_near_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_near_shape.cuh"

// Backward attention where rows see few keys: windows, short sequences. Blocks of one warpgroup,
// several a multiprocessor, each with 64 keys (dK and dV) or 64 queries (dQ) of its own. Both kinds
// compute the scores; dQ never lies in memory as f32, whose clearing, adding and reading would cost
// more than everything else. Blocks of the same rows are neighbours, so that one reads from the L2
// cache what the other has fetched. The results are the same bits every time.

namespace flashloom::sm90 {

/// Begins a step: waits for the pair that passes by, clears rows of others, issues S and dP.
template <class Shape, class Borders>
__device__ __forceinline__ void near_begin_step(const NearShared<Shape>& shared,
                                                const cuda::PipelineState<Shape::kStages>& place,
                                                const Borders& borders, int32_t tile,
                                                float (&scores)[32], float (&dp)[32]) {
  cuda::mbarrier_wait(shared.full(place.stage), place.parity, {"the warpgroup", "a pair"});
  char* pair = shared.pair(place.stage);
  if (tile == borders.tail) {
    zero_rows<Shape::kPanels>(pair, borders.tail_rows, 64, 1);
    zero_rows<Shape::kPanels>(pair + Shape::kTileBytes, borders.tail_rows, 64, 1);
  }
  const uint32_t own = cuda::shared_address(shared.own());
  const uint32_t other = cuda::shared_address(pair);
  near_issue_scores<Shape>(scores, own, other);
  near_issue_scores<Shape>(dp, own + Shape::kTileBytes, other + Shape::kTileBytes);
}

/// dK and dV of 64 keys.
template <class Shape>
__device__ __forceinline__ void near_keys(const BackwardParams& params, const BackwardWork& work,
                                          const NearShared<Shape>& shared,
                                          const BackwardMaps& maps) {
  using namespace cuda;
  using T = typename Shape::T;
  constexpr int kDim = Shape::kDim;
  const Problem& problem = params.problem;
  const Sequence& sequence = work.sequence;
  const uint32_t thread = threadIdx.x;
  const uint32_t lane = thread % 32;
  const auto own = static_cast<int32_t>(work.key + thread / 32 * 16 + lane / 4);
  const int32_t key_batch = problem.cu_key != nullptr ? 0 : work.batch;
  float dk[kDim / 2], dv[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) {
    dk[i] = dv[i] = 0;
  }
  BackwardWalk<Shape> walk = {}, ahead = {};
  if (walk.start(params, work)) {
    bool more_ahead = ahead.start(params, work);
    PipelineState<Shape::kStages> place, fill;
    auto load_next = [&] {
      if (!more_ahead) {
        return;
      }
      if (thread == 0) {
        const int64_t first = first_place(problem, sequence, work.batch, ahead.head,
                                          params.query_tiles, Shape::kQueries);
        const int64_t row = (first + ahead.t) * Shape::kQueries;
        uint64_t* full = shared.full(fill.stage);
        near_load<Shape>(shared.pair(fill.stage), full, &maps.q, &maps.dout,
                         {sequence.query_first + ahead.t * Shape::kQueries, ahead.head,
                          problem.cu_query != nullptr ? 0 : work.batch},
                         2 * Shape::kRowBytes);
        float* rows = shared.rows(fill.stage);
        bulk_load(rows, params.lse + row, Shape::kRowBytes, full);
        bulk_load(rows + Shape::kQueries, params.delta + row, Shape::kRowBytes, full);
      }
      fill.advance();
      more_ahead = ahead.advance(params, work);
    };
    if (thread == 0) {
      near_load<Shape>(shared.own(), shared.own_full(), &maps.k, &maps.v,
                       {sequence.key_first + work.key, work.head, key_batch}, 0);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      load_next();
    }
    const KeysBorders<Shape::kQueries> borders(problem, sequence, work.key);
    const float scale = params.scale * kLog2e;
    float scores[32], dp[32];
    uint32_t weights[16], ds[16];
    mbarrier_wait(shared.own_full(), 0, {"the warpgroup", "its own pair"});
    wgmma_hold(dk);
    wgmma_hold(dv);
    do {
      const uint32_t pair = shared_address(shared.pair(place.stage));
      const float* lse = shared.rows(place.stage) + 2 * (lane % 4);
      near_begin_step<Shape>(shared, place, borders, walk.t, scores, dp);
      wgmma_wait<1>();
      wgmma_hold(scores);
      if (walk.t < borders.open || walk.t >= borders.closed) {
        hide_queries(scores, sequence, own, walk.t * Shape::kQueries, lane);
      }
      if constexpr (Shape::kLate) {
        exponentials_in_place(scores, scale, lse);
      } else {
        exponentials<T>(scores, weights, scale, lse);
        wgmma_hold(weights);
        near_issue_sums<Shape>(dv, weights, pair + Shape::kTileBytes);
      }
      wgmma_wait<Shape::kLate ? 0 : 1>();
      wgmma_hold(dp);
      near_slopes<T, Shape::kLate>(scores, dp, weights, ds, lse + Shape::kQueries);
      if constexpr (Shape::kLate) {
        wgmma_hold(weights);
        near_issue_sums<Shape>(dv, weights, pair + Shape::kTileBytes);
      }
      wgmma_hold(ds);
      near_issue_sums<Shape>(dk, ds, pair);
      wgmma_wait<0>();
      wgmma_hold(dk);
      wgmma_hold(dv);
      wgmma_hold(weights);
      wgmma_hold(ds);
      place.advance();
      __syncthreads();  // all have done with the pair
      load_next();
    } while (walk.advance(params, work));
  }
  store_rows<T, kDim>(dk, params.scale, params.dk, key_batch, work.head, sequence.key_first, own,
                      sequence.key_length, sequence.key_rows, params.accumulate, true,
                      params.columns, lane);
  store_rows<T, kDim>(dv, 1, params.dv, key_batch, work.head, sequence.key_first, own,
                      sequence.key_length, sequence.key_rows, params.accumulate, true,
                      params.value_columns, lane);
}

/// dQ of 64 queries.
template <class Shape>
__device__ __forceinline__ void near_queries(const QueriesParams& params, const QueriesWork& work,
                                             const NearShared<Shape>& shared,
                                             const BackwardMaps& maps) {
  using namespace cuda;
  using T = typename Shape::T;
  constexpr int kDim = Shape::kDim;
  const Problem& problem = params.problem;
  const Sequence& sequence = work.sequence;
  const uint32_t thread = threadIdx.x;
  const uint32_t lane = thread % 32;
  const auto own = static_cast<int32_t>(work.query + thread / 32 * 16 + lane / 4);
  const int32_t query_batch = problem.cu_query != nullptr ? 0 : work.batch;
  float sums[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) {
    sums[i] = 0;
  }
  if (work.begin < work.end) {
    PipelineState<Shape::kStages> place, fill;
    int32_t ahead = work.begin;
    auto load_next = [&] {
      if (ahead >= work.end) {
        return;
      }
      if (thread == 0) {
        near_load<Shape>(
            shared.pair(fill.stage), shared.full(fill.stage), &maps.k, &maps.v,
            {sequence.key_first + ahead * Shape::kKeys, work.head / problem.heads_per_key,
             problem.cu_key != nullptr ? 0 : work.batch},
            0);
      }
      fill.advance();
      ++ahead;
    };
    if (thread == 0) {
      near_load<Shape>(shared.own(), shared.own_full(), &maps.q, &maps.dout,
                       {sequence.query_first + work.query, work.head, query_batch}, 0);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      load_next();
    }
    float lse[2], delta[2];
    const int64_t row = work.first_row(params);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t query = own + 8 * half;
      const bool exists = query < sequence.query_length;
      lse[half] = exists ? params.lse[row + query] : INFINITY;
      delta[half] = exists ? params.delta[row + query] : 0;
    }
    const QueriesBorders<Shape::kKeys> borders(problem, sequence, work.query);
    const float scale = params.scale * kLog2e;
    float scores[32], dp[32];
    uint32_t ds[16];
    mbarrier_wait(shared.own_full(), 0, {"the warpgroup", "its own pair"});
    wgmma_hold(sums);
    for (int32_t tile = work.begin; tile < work.end; ++tile) {
      near_begin_step<Shape>(shared, place, borders, tile, scores, dp);
      wgmma_wait<1>();
      wgmma_hold(scores);
      if (tile < borders.open || tile >= borders.closed) {
        hide_keys(scores, sequence, own, tile * Shape::kKeys, lane);
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        scores[i] = exp2_fast(fmaf(scores[i], scale, -lse[i / 2 % 2]));
      }
      wgmma_wait<0>();
      wgmma_hold(dp);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float shift = delta[i % 2];
        ds[i] = pack2<T>(scores[2 * i] * (dp[2 * i] - shift),
                         scores[2 * i + 1] * (dp[2 * i + 1] - shift));
      }
      wgmma_hold(ds);
      near_issue_sums<Shape>(sums, ds, shared_address(shared.pair(place.stage)));
      wgmma_wait<0>();
      wgmma_hold(sums);
      wgmma_hold(ds);
      place.advance();
      __syncthreads();  // all have done with the pair
      load_next();
    }
  }
  store_rows<T, kDim>(sums, params.scale, params.dq, query_batch, work.head, sequence.query_first,
                      own, sequence.query_length, sequence.query_rows, params.accumulate, true,
                      params.columns, lane);
}

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
  if (threadIdx.x == 0) {
    begin_backward_block(maps, [&] {
      mbarrier_init(shared.own_full(), 1);
      for (int i = 0; i < Shape::kStages; ++i) {
        mbarrier_init(shared.full(i), 1);
      }
    });
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
