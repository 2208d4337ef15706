#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"
#include "flashloom/ops/attention/sm90/backward_wide_shape.cuh"

// A consumer warpgroup of the kernel for dQ of heads with up to 256 columns: 64 queries. One
// function, since one of parts with the registers in a struct takes 1 % longer at 256 columns.

namespace flashloom::sm90 {

template <class Shape>
__device__ __forceinline__ void wide_queries_consume(const QueriesParams& params,
                                                     const QueriesWork& work,
                                                     const WideQueriesShared<Shape>& shared,
                                                     int32_t group) {
  using namespace cuda;
  using T = typename Shape::T;
  constexpr int kDim = Shape::kDim;
  constexpr int kScores = Shape::kKeys / 2;
  const Problem& problem = params.problem;
  const Sequence& sequence = work.sequence;
  WideQueriesBarriers<Shape>& barriers = shared.barriers();
  const uint32_t thread = threadIdx.x % 128;
  const uint32_t lane = threadIdx.x % 32;
  const int32_t first = work.query + group * 64;
  const auto own = first + static_cast<int32_t>(thread / 32 * 16 + lane / 4);
  const auto row_barrier = static_cast<uint32_t>(2 + group);
  float sums[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) {
    sums[i] = 0;
  }
  if (work.begin < work.end) {
    float lse[2], delta[2];
    const int64_t place = work.first_row(params);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t query = own + 8 * half;
      const bool exists = query < sequence.query_length;
      lse[half] = exists ? params.lse[place + query] : INFINITY;
      delta[half] = exists ? params.delta[place + query] : 0;
    }
    const QueriesBorders<Shape::kKeys> borders(problem, sequence, first);
    const float scale = params.scale * kLog2e;
    const uint32_t q = shared_address(shared.q()) + group * 64 * kPanelRowBytes;
    const uint32_t dout = shared_address(shared.dout()) + group * 64 * kPanelRowBytes;
    float scores[kScores], dp[kScores];  // scores become P in place, unrounded
    uint32_t ds[kScores / 2];
    auto issue_scores = [&](float(&d)[kScores], uint32_t a, uint32_t b) {
      wgmma_hold(d);
      wgmma_fence();
      issue_rows_by_rows<T, kDim, Shape::kQueries, Shape::kKeys, Shape::kKeys>(d, compute_here(a),
                                                                               compute_here(b));
    };
    auto wait_for = [&](uint64_t* full, uint32_t parity, char* tile, int32_t at) {
      mbarrier_wait(full, parity, {"a consumer", "k_full or v_full"});
      if (at == borders.tail) {
        zero_rows<Shape::kPanels>(tile, borders.tail_rows, Shape::kKeys, row_barrier);
      }
    };
    auto release = [&](uint64_t* empty) {
      if (lane == 0) {
        mbarrier_arrive(empty);
      }
    };
    PipelineState<Shape::kKeyStages> key_place;
    PipelineState<Shape::kValueStages> value_place;
    uint32_t kept = 0xffffffffu;
    auto finish_scores = [&](int32_t tile) {
      wgmma_hold(scores);
      uint32_t slopes[kScores / 2];
      float factor = scale;
      if constexpr (Shape::kAdjusts) {
        const BackwardScore& score = params.score;
        const float alibi =
            score.slopes != nullptr
                ? score.slopes[work.batch * score.slope_batch + work.head * score.slope_head] *
                      kLog2e
                : 0;
        const int32_t key = tile * Shape::kKeys + 2 * static_cast<int32_t>(lane % 4);
        // Of a query from a key: the functions see columns as queries.
        const int32_t distance = own + sequence.offset - key;
        general_scores(scores, slopes, score, params.scale, alibi, distance);
        factor = 1;
        if (score.exclude_self) {
          hide_self(scores, distance);
        }
        if (score.seed != nullptr) {
          kept = kept_by_dropout_of_rows(score, static_cast<uint32_t>(work.batch),
                                         static_cast<uint32_t>(work.head),
                                         static_cast<uint32_t>(sequence.query_start + own),
                                         static_cast<uint32_t>(problem.key_start + key),
                                         static_cast<uint32_t>(problem.key_start));
        }
      }
      if (tile < borders.open || tile >= borders.closed) {
        hide_keys(scores, sequence, own, tile * Shape::kKeys, lane);
      }
      uint32_t all = 0;
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const float shift = lse[i % 2];
        float& a = scores[2 * i];
        float& b = scores[2 * i + 1];
        a = exp2_fast(fmaf(a, factor, -shift));
        b = exp2_fast(fmaf(b, factor, -shift));
        if constexpr (Shape::kAdjusts) {
          float slope[2];
          unpack2<__half>(slopes[i], slope[0], slope[1]);
          a *= slope[0];
          b *= slope[1];
        }
        all |= __float_as_uint(a) | __float_as_uint(b);
      }
      // The exponentials run beside dQ.
      schedule_fence(__uint_as_float(all & 0x7fffffffu));
    };
    auto issue_gradients = [&](int32_t tile) {
      char* values = shared.v(value_place.stage);
      wait_for(&barriers.v_full[value_place.stage], value_place.parity, values, tile);
      issue_scores(dp, dout, shared_address(values));
    };
    auto finish_gradients = [&] {
      wgmma_hold(dp);
      release(&barriers.v_empty[value_place.stage]);
      value_place.advance();
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const float shift = delta[i % 2];
        if constexpr (Shape::kAdjusts) {
          const float keep = params.score.keep;
          dp[2 * i] = (kept >> (2 * i) & 1) != 0 ? dp[2 * i] * keep : 0;
          dp[2 * i + 1] = (kept >> (2 * i + 1) & 1) != 0 ? dp[2 * i + 1] * keep : 0;
        }
        ds[i] = pack2<T>(scores[2 * i] * (dp[2 * i] - shift),
                         scores[2 * i + 1] * (dp[2 * i + 1] - shift));
      }
    };
    auto issue_sums = [&](uint32_t stage) {
      wgmma_hold(ds);
      wgmma_hold(sums);
      wgmma_fence();
      issue_registers_by_tile<T, kDim, Shape::kKeys>(sums, ds, shared_address(shared.k(stage)));
    };
    mbarrier_wait(&barriers.q_full, 0, {"a consumer", "q_full"});
    wait_for(&barriers.k_full[0], 0, shared.k(0), work.begin);
    issue_scores(scores, q, shared_address(shared.k(0)));
    mbarrier_wait(&barriers.dout_full, 0, {"a consumer", "dout_full"});
    wgmma_wait<0>();
    finish_scores(work.begin);
    issue_gradients(work.begin);
    wgmma_wait<0>();
    finish_gradients();
    for (int32_t tile = work.begin + 1; tile < work.end; ++tile) {
      const uint32_t stage = key_place.stage;
      key_place.advance();
      wait_for(&barriers.k_full[key_place.stage], key_place.parity, shared.k(key_place.stage),
               tile);
      const auto finish_sums = [&] {
        wgmma_hold(sums);
        wgmma_hold(ds);
        release(&barriers.k_empty[stage]);
      };
      if constexpr (Shape::kSumsFirst) {
        issue_sums(stage);
        issue_scores(scores, q, shared_address(shared.k(key_place.stage)));
        wgmma_wait<1>();
        finish_sums();
        wgmma_wait<0>();
        finish_scores(tile);
        issue_gradients(tile);
      } else {
        wgmma_hold(ds);
        wgmma_hold(sums);
        issue_scores(scores, q, shared_address(shared.k(key_place.stage)));
        issue_sums(stage);
        wgmma_wait<1>();
        finish_scores(tile);
        if constexpr (Shape::kAdjusts) {
          // Its scores take longer than dQ, whose dS need not stay in registers beside P and dP.
          wgmma_wait<0>();
          finish_sums();
          issue_gradients(tile);
        } else {
          issue_gradients(tile);
          wgmma_wait<1>();
          finish_sums();
        }
      }
      wgmma_wait<0>();
      finish_gradients();
    }
    issue_sums(key_place.stage);
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(ds);
  }
  store_rows<T, kDim>(sums, params.scale, params.dq, problem.cu_query != nullptr ? 0 : work.batch,
                      work.head, sequence.query_first, own, sequence.query_length,
                      sequence.query_rows, params.accumulate, true, params.columns, lane);
}

}  // namespace flashloom::sm90
