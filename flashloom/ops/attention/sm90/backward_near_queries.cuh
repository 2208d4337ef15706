#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_near_shape.cuh"

// Blocks of the backward kernel for rows that see few keys that own queries.

namespace flashloom::sm90 {

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
    wait_for_earlier_kernel();  // that of lse and delta
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

}  // namespace flashloom::sm90
