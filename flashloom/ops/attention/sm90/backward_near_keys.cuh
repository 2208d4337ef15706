#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_near_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_near_shape.cuh"

// Blocks of the backward kernel for rows that see few keys that own keys.

namespace flashloom::sm90 {

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
      wait_for_earlier_kernel();  // that of lse and delta
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

}  // namespace flashloom::sm90
