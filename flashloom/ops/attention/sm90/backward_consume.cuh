#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_produce.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"

// A consumer warpgroup of the backward kernel: 64 keys.

namespace flashloom::sm90 {

template <class Shape>
struct BackwardConsumer {
  using T = typename Shape::T;
  static constexpr int kQueries = Shape::kQueries;
  static constexpr int kDim = Shape::kDim;
  static constexpr int kScores = kQueries / 2;
  static constexpr int kSums = Shape::kQueryColumns / 2;

  float dk[kDim / 2], dv[kDim / 2];

  static __device__ __forceinline__ void issue_scores(float (&d)[kScores], uint32_t a, uint32_t b) {
    issue_rows_by_rows<T, kDim, Shape::kKeys, kQueries, kQueries>(d, a, b);
  }

  /// dP, on top of -delta where that is read early.
  static __device__ __forceinline__ void issue_values(float (&d)[kScores], uint32_t a, uint32_t b) {
    issue_rows_by_rows<T, kDim, Shape::kKeys, kQueries, kQueries, Shape::kEarly>(d, a, b);
  }

  static __device__ __forceinline__ void issue_keys(float (&d)[kDim / 2],
                                                    const uint32_t (&a)[kScores / 2], uint32_t b) {
    issue_registers_by_tile<T, kDim, kQueries>(d, a, b);
  }

  /// This warpgroup's part of dQ from dS (keys x queries) and K: 64 queries x 64 columns, or
  /// 64 columns x queries if swapped.
  static __device__ __forceinline__ void issue_queries(float (&d)[kSums], uint32_t ds, uint32_t k) {
    issue_columns_by_columns<T, Shape::kKeys, Shape::kQueryColumns>(d, Shape::kSwapped ? k : ds,
                                                                    Shape::kSwapped ? ds : k);
  }

  /// -delta in each place of dP.
  static __device__ __forceinline__ void shift(float (&dp)[kScores], const float* delta) {
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      const float2 value = *reinterpret_cast<const float2*>(delta + 8 * j);
      dp[4 * j] = dp[4 * j + 2] = -value.x;
      dp[4 * j + 1] = dp[4 * j + 3] = -value.y;
    }
  }

  /// dS = P (dP - delta), rounded. In general scores dP is what dropout keeps of it, and `slopes`
  /// follow.
  static __device__ __forceinline__ void gradients(uint32_t (&ds)[kScores / 2],
                                                   const float (&scores)[kScores],
                                                   const uint32_t (&weights)[kScores / 2],
                                                   const float (&dp)[kScores], const float* delta,
                                                   const uint32_t (&slopes)[kScores / 2],
                                                   uint32_t kept, float keep) {
    using namespace cuda;
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      float2 less = {0, 0};
      if constexpr (!Shape::kEarly) {
        less = *reinterpret_cast<const float2*>(delta + 8 * j);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * j + 2 * half;
        float p[2] = {scores[at], scores[at + 1]};
        if constexpr (Shape::kRounded) {
          unpack2<T>(weights[at / 2], p[0], p[1]);
        }
        float x = dp[at], y = dp[at + 1];
        if constexpr (Shape::kAdjusts) {
          float slope[2];
          unpack2<__half>(slopes[at / 2], slope[0], slope[1]);
          p[0] *= slope[0];
          p[1] *= slope[1];
          x = (kept >> at & 1) != 0 ? x * keep : 0;
          y = (kept >> (at + 1) & 1) != 0 ? y * keep : 0;
        }
        if constexpr (!Shape::kEarly) {
          x -= less.x;
          y -= less.y;
        }
        ds[at / 2] = pack2<T>(p[0] * x, p[1] * y);
      }
    }
  }

  /// dP -> what dropout keeps of it, less dentropy ln P (delta holds dentropy times the entropy).
  static __device__ __forceinline__ void add_entropy(float (&dp)[kScores],
                                                     const uint32_t (&weights)[kScores / 2],
                                                     const float* dentropy, uint32_t kept,
                                                     float keep) {
    constexpr float kLn2 = 0.69314718055994531f;
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      const float2 factor = *reinterpret_cast<const float2*>(dentropy + 8 * (i / 2));
      float p[2];
      cuda::unpack2<T>(weights[i], p[0], p[1]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = dp[2 * i + c];
        x = (kept >> (2 * i + c) & 1) != 0 ? x * keep : 0;
        const float log = p[c] > 0 ? __log2f(p[c]) * kLn2 : 0;
        x = fmaf(c == 0 ? -factor.x : -factor.y, log, x);
      }
    }
  }

  static __device__ __forceinline__ void store_gradients(const uint32_t (&ds)[kScores / 2],
                                                         uint32_t buffer, uint32_t row,
                                                         uint32_t lane) {
#pragma unroll
    for (int i = 0; i < kQueries / 16; ++i) {
      cuda::stmatrix_x4(buffer + cuda::swizzled_offset(row, 16 * i + 8 * (lane / 16), Shape::kKeys),
                        ds[4 * i], ds[4 * i + 1], ds[4 * i + 2], ds[4 * i + 3]);
    }
  }

  /// Leaves this warpgroup's part of dQ to the thread that adds it to the others.
  static __device__ __forceinline__ void give(const float (&dq)[kSums],
                                              const BackwardShared<Shape>& shared, int32_t group,
                                              const cuda::PipelineState<Shape::kSumStages>& place,
                                              uint32_t thread) {
    using namespace cuda;
    BackwardBarriers<Shape>& barriers = shared.barriers();
    mbarrier_wait(&barriers.sum_empty[group][place.stage], place.parity ^ 1,
                  {"a consumer", "sum_empty"});
    auto* to = reinterpret_cast<float4*>(shared.sum(group, place.stage)) + thread;
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      if (kDim != 96 || i * 128 * 16 < Shape::sum_bytes(group)) {
        to[128 * i] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
      }
    }
    fence_async_shared();
    __syncwarp();
    if (thread % 32 == 0) {
      mbarrier_arrive(&barriers.sum_full[group][place.stage]);
    }
  }

  __device__ __forceinline__ void run(const BackwardParams& params, const BackwardWork& work,
                                      const BackwardShared<Shape>& shared, int32_t group) {
    using namespace cuda;
    const uint32_t thread = threadIdx.x % 128;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = thread / 32;
    const float scale_log2 = params.scale * kLog2e;
    const Problem& problem = params.problem;
    const Sequence& sequence = work.sequence;
    BackwardBarriers<Shape>& barriers = shared.barriers();
    PipelineState<Shape::kStages> place;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) {
      dk[i] = dv[i] = 0;
    }
    const auto own_key = static_cast<int32_t>(work.key + group * 64 + warp * 16 + lane / 4);
    BackwardWalk<Shape> walk = {};
    bool more = work.begin < work.end;
    if (more) {
      mbarrier_wait(&barriers.k_full, 0, {"a consumer", "k_full"});
      mbarrier_wait(&barriers.v_full, 0, {"a consumer", "v_full"});
      if constexpr (Shape::kLists) {
        mbarrier_wait(&barriers.q_full[0], 0, {"a consumer", "q_full"});
        more = barriers.steps[0].t >= 0;
      } else {
        walk.start(params, work);
      }
    }
    if (more) {
      const uint32_t k = shared_address(shared.k());
      const uint32_t v = shared_address(shared.v());
      const uint32_t own_k = k + group * 64 * kPanelRowBytes;
      const uint32_t own_v = v + group * 64 * kPanelRowBytes;
      // This warpgroup's part of dQ: half of the columns, or half of the queries.
      const uint32_t dq_k = kDim > 64 ? k + group * panel_bytes(Shape::kKeys) : k;
      const uint32_t dq_ds = Shape::kSplitQueries            ? group * panel_bytes(Shape::kKeys)
                             : Shape::kSwapped && kDim == 64 ? group * Shape::kQueryColumns * 2
                                                             : 0;
      // Lane l of stmatrix: row l % 16, columns 8 (l / 16).
      const uint32_t store_row = group * 64 + warp * 16 + lane % 16;
      // Tiles in [open, closed) hide nothing from these 64 keys.
      const int32_t first_key = work.key + group * 64;
      const bool keys_exist = first_key + 64 <= sequence.key_length;
      const int32_t open =
          keys_exist ? (sequence.query_begin(first_key + 63) + kQueries - 1) / kQueries : INT32_MAX;
      const int32_t visible_end = sequence.query_end(first_key);
      const int32_t closed =
          visible_end >= sequence.query_length ? INT32_MAX : visible_end / kQueries;
      // The tile whose last rows are not this sequence's, if any holds something else than zeros.
      const bool others = problem.cu_query != nullptr || problem.used_query != nullptr;
      const int32_t tail_rows = sequence.query_length % kQueries;
      const int32_t tail = others && tail_rows != 0 ? sequence.query_length / kQueries : -1;
      const auto row_barrier = static_cast<uint32_t>(2 + group);
      float scores[kScores], dp[kScores], dq[kSums];
      uint32_t weights[kScores / 2], ds[kScores / 2];
      uint32_t slopes[kScores / 2] = {};  // in general scores
      uint32_t kept = 0xffffffffu;
      uint32_t buffer_index = 0;
      PipelineState<Shape::kSumStages> sum_place;

      auto step_at = [&](uint32_t stage) -> BackwardStep {
        return Shape::kLists ? barriers.steps[stage] : walk;
      };
      auto wait_for = [&](uint64_t* full, char* tile, int32_t t) {
        mbarrier_wait(full, place.parity, {"a consumer", "q_full or dout_full"});
        if (t == tail) {
          zero_rows<Shape::kPanels>(tile, tail_rows, kQueries, row_barrier);
        }
      };
      auto release_values = [&](uint32_t stage) {
        if (lane == 0) {
          mbarrier_arrive(&barriers.dout_empty[stage]);
        }
      };
      auto release_queries = [&](uint32_t stage) {
        if constexpr (Shape::kLists) {
          __syncwarp();  // all lanes have read the step
        }
        if (lane == 0) {
          mbarrier_arrive(&barriers.q_empty[stage]);
        }
      };

      if (work.key + Shape::kKeys > sequence.key_length &&
          (problem.cu_key != nullptr || problem.used_key != nullptr)) {
        // Both warpgroups zero all, since dQ reads the keys of both.
        const int32_t keys = sequence.key_length - work.key;
        zero_rows<Shape::kPanels>(shared.k(), keys, Shape::kKeys, row_barrier);
        zero_rows<Shape::kPanels>(shared.v(), keys, Shape::kKeys, row_barrier);
      }
      auto start_scores = [&] {
        wgmma_hold(scores);
        wgmma_fence();
        issue_scores(scores, own_k, shared_address(shared.q(place.stage)));
      };
      auto start_keys = [&](uint32_t stage) {
        wgmma_hold(ds);
        wgmma_hold(dk);
        wgmma_fence();
        issue_keys(dk, ds, shared_address(shared.q(stage)));
      };
      auto start_values = [&](uint32_t stage) {
        wgmma_hold(weights);
        wgmma_hold(dv);
        wgmma_fence();
        issue_keys(dv, weights, shared_address(shared.dout(stage)));
      };
      auto start_queries = [&](uint32_t buffer) {
        fence_async_shared();
        named_barrier_sync(1, 256, {"a consumer", "the other's dS"});
        wgmma_hold(dq);
        wgmma_fence();
        issue_queries(dq, buffer + dq_ds, dq_k);
      };
      // The next step, whose tile of queries has come.
      auto next = [&] {
        place.advance();
        if constexpr (Shape::kLists) {
          mbarrier_wait(&barriers.q_full[place.stage], place.parity, {"a consumer", "q_full"});
          more = step_at(place.stage).t >= 0;
        } else {
          more = walk.advance(params, work);
        }
        if (more) {
          wait_for(&barriers.q_full[place.stage], shared.q(place.stage), step_at(place.stage).t);
        }
      };
      float2 lse[kScores / 4];
      // What a step needs beside its tile of queries; after the last one it is read from a stale
      // tile.
      auto read_rows = [&] {
        if (more) {
          wait_for(&barriers.dout_full[place.stage], shared.dout(place.stage),
                   step_at(place.stage).t);
        }
        load_rows<kScores>(lse, shared.lse(place.stage) + 2 * (lane % 4));
        shift(dp, shared.delta(place.stage) + 2 * (lane % 4));
      };
      wait_for(&barriers.q_full[0], shared.q(0), step_at(0).t);
      if constexpr (Shape::kAhead) {
        start_scores();
      } else if constexpr (Shape::kEarly) {
        read_rows();
      }
      while (true) {
        const uint32_t stage = place.stage;
        const int32_t t = step_at(stage).t;
        const float* delta = shared.delta(stage) + 2 * (lane % 4);
        if constexpr (Shape::kAhead) {
          wgmma_wait<0>();
          wgmma_hold(scores);
        } else {
          if constexpr (Shape::kEarly) {
            wgmma_hold(dp);
          }
          start_scores();
        }
        if constexpr (!Shape::kAdjusts) {
          if constexpr (!Shape::kEarly) {
            wait_for(&barriers.dout_full[stage], shared.dout(stage), t);
            wgmma_hold(dp);
            wgmma_fence();
          }
          issue_values(dp, own_v, shared_address(shared.dout(stage)));
        }
        if constexpr (!Shape::kAhead) {
          wgmma_wait<1>();
          wgmma_hold(scores);
        }
        float factor = scale_log2;
        if constexpr (Shape::kAdjusts) {
          const BackwardScore& score = params.score;
          const float alibi = score.slopes != nullptr
                                  ? score.slopes[work.batch * score.slope_batch +
                                                 step_at(stage).head * score.slope_head] *
                                        kLog2e
                                  : 0;
          const int32_t query = t * kQueries + 2 * static_cast<int32_t>(lane % 4);
          const int32_t distance = own_key - query - sequence.offset;
          general_scores(scores, slopes, score, params.scale, alibi, distance);
          factor = 1;
          if (score.exclude_self) {
            hide_self(scores, distance);
          }
        }
        if constexpr (Shape::kLists) {
          if (const int32_t partial = step_at(stage).partial; partial >= 0) {
            const int32_t query = t * kQueries + 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
            for (int part = 0; part < kScores / 32; ++part) {
              const uint32_t visible =
                  kept_by_block(params.blocks, partial, (query + 64 * part) % params.blocks.queries,
                                own_key % params.blocks.keys);
#pragma unroll
              for (int i = 0; i < 32; ++i) {
                float& score = scores[32 * part + i];
                score = (visible >> i & 1) != 0 ? score : -INFINITY;
              }
            }
          }
        }
        if (t < open || t >= closed) {
          hide_queries(scores, sequence, own_key, t * kQueries, lane);
        }
        if constexpr (Shape::kEarly) {
          exponentials<T>(scores, weights, factor, lse);
        } else {
          exponentials<T>(scores, weights, factor, shared.lse(stage) + 2 * (lane % 4));
        }
        if constexpr (Shape::kAdjusts) {
          wait_for(&barriers.dout_full[stage], shared.dout(stage), t);
          uint32_t dropped[kScores / 2];
          if (params.score.seed != nullptr) {
            const auto query = static_cast<uint32_t>(sequence.query_start + t * kQueries +
                                                     2 * static_cast<int32_t>(lane % 4));
            kept = kept_by_dropout<kScores>(params.score, static_cast<uint32_t>(work.batch),
                                            static_cast<uint32_t>(step_at(stage).head), query,
                                            static_cast<uint32_t>(problem.key_start + own_key),
                                            static_cast<uint32_t>(problem.key_start));
          }
#pragma unroll
          for (int i = 0; i < kScores / 2; ++i) {
            dropped[i] = (weights[i] & ((kept >> (2 * i) & 1) != 0 ? 0xffffu : 0u)) |
                         (weights[i] & ((kept >> (2 * i + 1) & 1) != 0 ? 0xffff0000u : 0u));
          }
          wgmma_hold(dropped);
          wgmma_hold(dv);
          wgmma_fence();
          issue_keys(dv, dropped, shared_address(shared.dout(stage)));
          wgmma_wait<0>();
          wgmma_hold(dropped);
          wgmma_hold(dv);
          wgmma_hold(dp);  // not before: its registers would not suffice
          wgmma_fence();
          issue_scores(dp, own_v, shared_address(shared.dout(stage)));
          wgmma_wait<0>();
        } else if constexpr (Shape::kAhead) {
          start_values(stage);
          wgmma_wait<1>();
        } else {
          wgmma_wait<0>();
        }
        wgmma_hold(dp);
        float keep = params.score.keep;
        if constexpr (Shape::kAdjusts) {
          if (params.dentropy != nullptr) {
            add_entropy(dp, weights, shared.dentropy(stage) + 2 * (lane % 4), kept, keep);
            kept = 0xffffffffu;
            keep = 1;
          }
        }
        gradients(ds, scores, weights, dp, delta, slopes, kept, keep);
        const uint32_t buffer = shared_address(shared.ds(buffer_index));
        buffer_index ^= 1;
        store_gradients(ds, buffer, store_row, lane);
        if constexpr (Shape::kAhead) {
          start_keys(stage);
          start_queries(buffer);
          wgmma_wait<1>();
          wgmma_hold(dk);
          wgmma_hold(dv);
          if constexpr (!Shape::kAdjusts) {
            wgmma_hold(weights);
          }
          wgmma_hold(ds);
          release_values(stage);
          release_queries(stage);
          next();
          // After the last step these scores are computed from a stale tile and never used:
          // cheaper than a second loop body.
          start_scores();
          wgmma_wait<1>();
          wgmma_hold(dq);
          give(dq, shared, group, sum_place, thread);
        } else {
          start_values(stage);
          start_queries(buffer);
          start_keys(stage);
          wgmma_wait<1>();
          wgmma_hold(dv);
          wgmma_hold(weights);
          wgmma_hold(dq);
          release_values(stage);
          give(dq, shared, group, sum_place, thread);
          next();
          if constexpr (Shape::kEarly) {
            read_rows();
          }
          wgmma_wait<0>();
          wgmma_hold(dk);
          wgmma_hold(ds);
          release_queries(stage);
        }
        sum_place.advance();
        if (!more) {
          break;
        }
      }
      if constexpr (Shape::kAhead) {
        wgmma_wait<0>();
        wgmma_hold(scores);
      }
    }
    const int64_t batch = problem.cu_key != nullptr ? 0 : work.batch;
    const int32_t rows = sequence.key_rows;
    // Sums of rows that are stored but not used are those of nothing.
    store_rows<T, kDim>(dk, params.scale, params.dk, batch, work.head, sequence.key_first, own_key,
                        rows, rows, params.accumulate, !Shape::kExact, params.columns, lane);
    store_rows<T, kDim>(dv, Shape::kAdjusts ? params.score.keep : 1, params.dv, batch, work.head,
                        sequence.key_first, own_key, rows, rows, params.accumulate, !Shape::kExact,
                        params.value_columns, lane);
  }
};

}  // namespace flashloom::sm90
