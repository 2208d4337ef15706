#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"

// A consumer warpgroup of the backward kernel: 64 keys.

namespace flashloom::sm90 {

/// Zeroes rows [first, rows) of a tile, which hold another sequence's data or padding: 0 times a
/// NaN would reach the sums. Every warpgroup that reads the tile does it.
template <class Shape>
__device__ __forceinline__ void zero_rows(char* tile, int32_t first, int32_t rows,
                                          uint32_t barrier) {
  const int32_t chunks = (rows - first) * 8;
  for (int32_t i = static_cast<int32_t>(threadIdx.x % 128); i < chunks; i += 128) {
#pragma unroll
    for (int p = 0; p < Shape::kPanels; ++p) {
      *reinterpret_cast<uint4*>(tile + p * cuda::panel_bytes(rows) + first * cuda::kPanelRowBytes +
                                i * 16) = make_uint4(0, 0, 0, 0);
    }
  }
  cuda::fence_async_shared();
  cuda::named_barrier_sync(barrier, 128, {"a consumer", "rows cleared"});
}

template <class Shape>
struct BackwardConsumer {
  using T = typename Shape::T;
  using ScoreProduct = cuda::Wgmma<T, Shape::kQueries>;
  using KeyProduct = cuda::Wgmma<T, Shape::kDim>;
  using QueryProduct = cuda::Wgmma<T, Shape::kQueryColumns>;
  static constexpr int kScores = Shape::kQueries / 2;
  static constexpr int kSums = Shape::kQueryColumns / 2;

  float dk[Shape::kDim / 2], dv[Shape::kDim / 2];

  /// d (64 keys x queries) = a (keys) b (queries)^T.
  static __device__ __forceinline__ void issue_scores(float (&d)[kScores], uint32_t a, uint32_t b) {
    using namespace cuda;
    const uint64_t left = k_major_descriptor(a);
    const uint64_t right = k_major_descriptor(b);
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      ScoreProduct::template from_shared<Major::kReduced, Major::kReduced>(
          d, left + (k_major_step(step, Shape::kKeys) >> 4),
          right + (k_major_step(step, Shape::kQueries) >> 4), step != 0);
    }
    wgmma_commit();
  }

  /// d (64 keys x dim) += a (keys x queries, registers) b (queries x dim).
  static __device__ __forceinline__ void issue_keys(float (&d)[Shape::kDim / 2],
                                                    const uint32_t (&a)[kScores / 2], uint32_t b) {
    using namespace cuda;
    const uint64_t right = mn_major_descriptor(b, Shape::kQueries);
#pragma unroll
    for (int step = 0; step < Shape::kQueries / 16; ++step) {
      KeyProduct::template from_registers<Major::kOther>(d, a[4 * step], a[4 * step + 1],
                                                         a[4 * step + 2], a[4 * step + 3],
                                                         right + (mn_major_step(step) >> 4), 1);
    }
    wgmma_commit();
  }

  /// This warpgroup's part of dQ from dS (keys x queries) and K: 64 queries x 64 columns, or
  /// 64 columns x queries if swapped.
  static __device__ __forceinline__ void issue_queries(float (&d)[kSums], uint32_t ds, uint32_t k) {
    using namespace cuda;
    const uint64_t a = mn_major_descriptor(Shape::kSwapped ? k : ds, Shape::kKeys);
    const uint64_t b = mn_major_descriptor(Shape::kSwapped ? ds : k, Shape::kKeys);
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      QueryProduct::template from_shared<Major::kOther, Major::kOther>(
          d, a + (mn_major_step(step) >> 4), b + (mn_major_step(step) >> 4), step != 0);
    }
    wgmma_commit();
  }

  /// Hides pairs; `key` is this thread's first key, `query` the tile's first query.
  static __device__ __forceinline__ void mask(float (&scores)[kScores], const Sequence& sequence,
                                              int32_t key, int32_t query, uint32_t lane) {
    const int32_t first = query + 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t own = key + 8 * half;
      const int32_t begin = sequence.query_begin(own) - first;
      const int32_t end = own < sequence.key_length ? sequence.query_end(own) - first : INT32_MIN;
#pragma unroll
      for (int i = 0; i < Shape::kQueries / 4; ++i) {
        const int32_t place = 8 * (i / 2) + i % 2;
        float& score = scores[4 * (i / 2) + 2 * half + i % 2];
        score = place >= begin && place < end ? score : -INFINITY;
      }
    }
  }

  /// Writes this thread's rows of dK or dV that are stored.
  static __device__ __forceinline__ void store(const float (&sum)[Shape::kDim / 2], float factor,
                                               const RowTensor& out, bool accumulate,
                                               const BackwardWork& work, bool packed, int32_t key,
                                               uint32_t lane) {
    const int64_t batch = packed ? 0 : work.batch;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = key + 8 * half;
      const int64_t place = work.sequence.key_first + row;
      const bool stored = row < work.sequence.key_rows;
      if (out.wide) {
        auto* to = reinterpret_cast<float2*>(out.at<float>(batch, work.head, place)) + lane % 4;
#pragma unroll
        for (int j = 0; j < Shape::kDim / 8; ++j) {
          float2 value = {sum[4 * j + 2 * half] * factor, sum[4 * j + 2 * half + 1] * factor};
          if (stored && accumulate) {
            value.x += to[4 * j].x;
            value.y += to[4 * j].y;
          }
          if (stored) {
            to[4 * j] = value;
          }
        }
        continue;
      }
      T* to = out.at<T>(batch, work.head, place);
#pragma unroll
      for (int group = 0; group < Shape::kDim / 32; ++group) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 4 * group + i;
          words[i] =
              cuda::pack2<T>(sum[4 * j + 2 * half] * factor, sum[4 * j + 2 * half + 1] * factor);
        }
        cuda::quad_transpose(words, lane);
        if (stored) {
          *reinterpret_cast<uint4*>(to + 32 * group + 8 * (lane % 4)) =
              make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }

  /// Scores -> P, in place and rounded.
  static __device__ __forceinline__ void exponentials(float (&scores)[kScores],
                                                      uint32_t (&weights)[kScores / 2], float scale,
                                                      const float* lse) {
    using namespace cuda;
#pragma unroll
    for (int j = 0; j < Shape::kQueries / 8; ++j) {
      const float2 shift = *reinterpret_cast<const float2*>(lse + 8 * j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& a = scores[4 * j + 2 * half];
        float& b = scores[4 * j + 2 * half + 1];
        a = exp2_fast(fmaf(a, scale, -shift.x));
        b = exp2_fast(fmaf(b, scale, -shift.y));
        weights[2 * j + half] = pack2<T>(a, b);
      }
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
    for (int j = 0; j < Shape::kQueries / 8; ++j) {
      const float2 shift = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * j + 2 * half;
        float p[2] = {scores[at], scores[at + 1]};
        if constexpr (Shape::kRounded) {
          unpack2<T>(weights[at / 2], p[0], p[1]);
        }
        float x = dp[at], y = dp[at + 1];
        if constexpr (Shape::kGeneral) {
          float slope[2];
          unpack2<__half>(slopes[at / 2], slope[0], slope[1]);
          p[0] *= slope[0];
          p[1] *= slope[1];
          x = (kept >> at & 1) != 0 ? x * keep : 0;
          y = (kept >> (at + 1) & 1) != 0 ? y * keep : 0;
        }
        ds[at / 2] = pack2<T>(p[0] * (x - shift.x), p[1] * (y - shift.y));
      }
    }
  }

  static __device__ __forceinline__ void store_gradients(const uint32_t (&ds)[kScores / 2],
                                                         uint32_t buffer, uint32_t row,
                                                         uint32_t lane) {
#pragma unroll
    for (int i = 0; i < Shape::kQueries / 16; ++i) {
      cuda::stmatrix_x4(buffer + cuda::swizzled_offset(row, 16 * i + 8 * (lane / 16), Shape::kKeys),
                        ds[4 * i], ds[4 * i + 1], ds[4 * i + 2], ds[4 * i + 3]);
    }
  }

  /// Adds this warpgroup's part of dQ, in its turn if there are turns.
  static __device__ __forceinline__ void add(float* sum, const float (&dq)[kSums],
                                             BackwardBarriers<Shape>& barriers, int32_t group,
                                             bool turns, uint32_t parity, uint32_t lane) {
    if (turns) {
      cuda::mbarrier_wait(&barriers.turn[group], parity, {"a consumer", "turn"});
    }
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      cuda::reduce_add_f32x4(sum + 512 * i, dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
    }
    if (turns) {
      __syncwarp();
      if (lane == 0) {
        cuda::mbarrier_arrive(&barriers.added[group]);
      }
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
    for (int i = 0; i < Shape::kDim / 2; ++i) {
      dk[i] = dv[i] = 0;
    }
    const auto own_key = static_cast<int32_t>(work.key + group * 64 + warp * 16 + lane / 4);
    BackwardWalk<Shape> walk = {};
    bool more = work.begin < work.end;
    if (more) {
      mbarrier_wait(&barriers.k_full, 0, {"a consumer", "k_full"});
      mbarrier_wait(&barriers.v_full, 0, {"a consumer", "v_full"});
      if constexpr (Shape::kGeneral) {
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
      const uint32_t dq_k = Shape::kDim == 128 ? k + group * panel_bytes(Shape::kKeys) : k;
      const uint32_t dq_ds = Shape::kSplitQueries ? group * panel_bytes(Shape::kKeys)
                             : Shape::kSwapped && Shape::kDim == 64
                                 ? group * Shape::kQueryColumns * 2
                                 : 0;
      // Lane l of stmatrix: row l % 16, columns 8 (l / 16).
      const uint32_t store_row = group * 64 + warp * 16 + lane % 16;
      // Tiles in [open, closed) hide nothing from these 64 keys.
      const int32_t first_key = work.key + group * 64;
      const bool keys_exist = first_key + 64 <= sequence.key_length;
      const int32_t open =
          keys_exist
              ? (sequence.query_begin(first_key + 63) + Shape::kQueries - 1) / Shape::kQueries
              : INT32_MAX;
      const int32_t visible_end = sequence.query_end(first_key);
      const int32_t closed =
          visible_end >= sequence.query_length ? INT32_MAX : visible_end / Shape::kQueries;
      // The tile whose last rows are not this sequence's, if any holds something else than zeros.
      const bool others = problem.cu_query != nullptr || problem.used_query != nullptr;
      const int32_t tail_rows = sequence.query_length % Shape::kQueries;
      const int32_t tail = others && tail_rows != 0 ? sequence.query_length / Shape::kQueries : -1;
      const auto row_barrier = static_cast<uint32_t>(2 + group);
      float scores[kScores], dp[kScores], dq[kSums];
      uint32_t weights[kScores / 2], ds[kScores / 2];
      uint32_t slopes[kScores / 2] = {};  // in general scores
      uint32_t kept = 0xffffffffu;
      const bool turns = params.turns != nullptr;
      uint32_t parity = 0;
      uint32_t buffer_index = 0;
      float* sum = nullptr;

      auto step_at = [&](uint32_t stage) -> BackwardStep {
        return Shape::kGeneral ? barriers.steps[stage] : walk;
      };
      auto sum_of = [&](const BackwardStep& at) {
        const int64_t first = first_place(problem, sequence, work.batch, at.head,
                                          params.query_tiles, Shape::kQueries);
        return params.dq + (first + at.t) * (Shape::kQueries * Shape::kDim) +
               group * (Shape::kQueries * Shape::kDim / 2) + thread * 4;
      };
      auto wait_for = [&](uint64_t* full, char* tile, int32_t t) {
        mbarrier_wait(full, place.parity, {"a consumer", "q_full or dout_full"});
        if (t == tail) {
          zero_rows<Shape>(tile, tail_rows, Shape::kQueries, row_barrier);
        }
      };
      auto release = [&](uint32_t stage) {
        if (lane == 0) {
          mbarrier_arrive(&barriers.q_empty[stage]);
          mbarrier_arrive(&barriers.dout_empty[stage]);
        }
      };

      if (work.key + Shape::kKeys > sequence.key_length &&
          (problem.cu_key != nullptr || problem.used_key != nullptr)) {
        // Both warpgroups zero all, since dQ reads the keys of both.
        zero_rows<Shape>(shared.k(), sequence.key_length - work.key, Shape::kKeys, row_barrier);
        zero_rows<Shape>(shared.v(), sequence.key_length - work.key, Shape::kKeys, row_barrier);
      }
      uint32_t previous = 0;  // stage of the step before
      if constexpr (!Shape::kLate) {
        wait_for(&barriers.q_full[0], shared.q(0), step_at(0).t);
        wgmma_hold(scores);
        wgmma_fence();
        issue_scores(scores, own_k, shared_address(shared.q(0)));
      }
      while (true) {
        const uint32_t stage = place.stage;
        const int32_t t = step_at(stage).t;
        if constexpr (Shape::kLate) {
          wait_for(&barriers.q_full[stage], shared.q(stage), t);
          // The scores queue behind dK if registers suffice.
          wgmma_wait<Shape::kQueued ? 1 : 0>();
          wgmma_hold(dv);
          wgmma_hold(weights);
          if constexpr (!Shape::kQueued) {
            wgmma_hold(dk);
            wgmma_hold(ds);
          }
          wgmma_hold(scores);
          wgmma_fence();
          issue_scores(scores, own_k, shared_address(shared.q(stage)));
          if constexpr (Shape::kQueued) {
            wgmma_wait<1>();
            wgmma_hold(dk);
            wgmma_hold(ds);
          }
          if (sum != nullptr) {
            release(previous);
          }
          wgmma_hold(dq);
          wgmma_fence();
          // Before the first step from nothing, and not used: cheaper than another loop body.
          issue_queries(dq, shared_address(shared.ds(buffer_index ^ 1)) + dq_ds, dq_k);
        }
        const float* lse = shared.lse(stage) + 2 * (lane % 4);
        const float* delta = shared.delta(stage) + 2 * (lane % 4);
        if constexpr (Shape::kLate) {
          wgmma_wait<1>();
          wgmma_hold(scores);
        } else {
          wgmma_wait<0>();
          wgmma_hold(scores);
          if constexpr (!Shape::kGeneral) {
            wait_for(&barriers.dout_full[stage], shared.dout(stage), t);
            wgmma_hold(dp);
            wgmma_fence();
            issue_scores(dp, own_v, shared_address(shared.dout(stage)));
          }
        }
        float factor = scale_log2;
        if constexpr (Shape::kGeneral) {
          const BackwardScore& score = params.score;
          const float alibi = score.slopes != nullptr
                                  ? score.slopes[work.batch * score.slope_batch +
                                                 step_at(stage).head * score.slope_head] *
                                        kLog2e
                                  : 0;
          const int32_t query = t * Shape::kQueries + 2 * static_cast<int32_t>(lane % 4);
          general_scores(scores, slopes, score, params.scale, alibi,
                         own_key - query - sequence.offset);
          factor = 1;
          if (const int32_t partial = step_at(stage).partial; partial >= 0) {
            const uint32_t visible =
                kept_by_block(params.blocks, partial, query % params.blocks.queries,
                              own_key % params.blocks.keys);
#pragma unroll
            for (int i = 0; i < kScores; ++i) {
              scores[i] = (visible >> i & 1) != 0 ? scores[i] : -INFINITY;
            }
          }
        }
        if (t < open || t >= closed) {
          mask(scores, sequence, own_key, t * Shape::kQueries, lane);
        }
        exponentials(scores, weights, factor, lse);
        if constexpr (Shape::kLate) {
          wgmma_hold(weights);
          uint32_t all = 0;  // weights are never negative
#pragma unroll
          for (int i = 0; i < kScores / 2; ++i) {
            all |= weights[i];
          }
          schedule_fence(__uint_as_float(all));
          wgmma_wait<0>();
          wgmma_hold(dq);
          if (sum != nullptr) {
            add(sum, dq, barriers, group, turns, parity, lane);
            parity ^= 1;
          }
          sum = sum_of(step_at(stage));
        }
        if constexpr (Shape::kLate || Shape::kGeneral) {
          wait_for(&barriers.dout_full[stage], shared.dout(stage), t);
        }
        if constexpr (Shape::kLate) {
          wgmma_hold(dp);
          wgmma_fence();
          issue_scores(dp, own_v, shared_address(shared.dout(stage)));
        }
        if constexpr (Shape::kGeneral) {
          uint32_t dropped[kScores / 2];
          if (params.score.seed != nullptr) {
            const auto query = static_cast<uint32_t>(sequence.query_start + t * Shape::kQueries +
                                                     2 * static_cast<int32_t>(lane % 4));
            kept = kept_by_dropout<kScores>(params.score, static_cast<uint32_t>(work.batch),
                                            static_cast<uint32_t>(step_at(stage).head), query,
                                            static_cast<uint32_t>(problem.key_start + own_key),
                                            static_cast<uint32_t>(problem.key_start));
          }
#pragma unroll
          for (int i = 0; i < kScores / 2; ++i) {
            dropped[i] = weights[i] & ((kept >> (2 * i) & 1) != 0 ? 0xffffu : 0u) |
                         weights[i] & ((kept >> (2 * i + 1) & 1) != 0 ? 0xffff0000u : 0u);
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
        } else {
          wgmma_hold(weights);
          wgmma_hold(dv);
          wgmma_fence();
          issue_keys(dv, weights, shared_address(shared.dout(stage)));
          wgmma_wait<1>();
        }
        wgmma_hold(dp);
        gradients(ds, scores, weights, dp, delta, slopes, kept, params.score.keep);
        const uint32_t buffer = shared_address(shared.ds(buffer_index));
        buffer_index ^= 1;
        store_gradients(ds, buffer, store_row, lane);
        wgmma_hold(ds);
        wgmma_hold(dk);
        wgmma_fence();
        issue_keys(dk, ds, shared_address(shared.q(stage)));
        fence_async_shared();
        named_barrier_sync(1, 256, {"a consumer", "the other's dS"});
        if constexpr (Shape::kLate) {
          previous = stage;
          place.advance();
          more = walk.advance(params, work);
          if (!more) {
            break;
          }
        } else {
          wgmma_hold(dq);
          wgmma_fence();
          issue_queries(dq, buffer + dq_ds, dq_k);
          wgmma_wait<1>();
          wgmma_hold(dk);
          wgmma_hold(dv);
          if constexpr (!Shape::kGeneral) {
            wgmma_hold(weights);
          }
          wgmma_hold(ds);
          sum = sum_of(step_at(stage));
          release(stage);
          place.advance();
          if constexpr (Shape::kGeneral) {
            mbarrier_wait(&barriers.q_full[place.stage], place.parity, {"a consumer", "q_full"});
            more = step_at(place.stage).t >= 0;
          } else {
            more = walk.advance(params, work);
          }
          if (more) {
            wait_for(&barriers.q_full[place.stage], shared.q(place.stage), step_at(place.stage).t);
          }
          wgmma_hold(scores);
          wgmma_fence();
          issue_scores(scores, own_k, shared_address(shared.q(place.stage)));
          wgmma_wait<1>();
          wgmma_hold(dq);
          add(sum, dq, barriers, group, turns, parity, lane);
          parity ^= 1;
          if (!more) {
            break;
          }
        }
      }
      if constexpr (Shape::kLate) {
        wgmma_hold(dq);
        wgmma_fence();
        issue_queries(dq, shared_address(shared.ds(buffer_index ^ 1)) + dq_ds, dq_k);
      }
      wgmma_wait<0>();
      wgmma_hold(scores);
      if constexpr (Shape::kLate) {
        wgmma_hold(dv);
        wgmma_hold(dk);
        wgmma_hold(weights);
        wgmma_hold(ds);
        wgmma_hold(dq);
        add(sum, dq, barriers, group, turns, parity, lane);
      }
    }
    const bool packed = problem.cu_key != nullptr;
    store(dk, params.scale, params.dk, params.accumulate, work, packed, own_key, lane);
    store(dv, Shape::kGeneral ? params.score.keep : 1, params.dv, params.accumulate, work, packed,
          own_key, lane);
  }
};

}  // namespace flashloom::sm90
