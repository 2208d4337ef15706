#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/sm90/backward_finish.cuh"
#include "flashloom/ops/attention/sm90/backward_follow.cuh"
#include "flashloom/ops/attention/sm90/backward_hide.cuh"
#include "flashloom/ops/attention/sm90/backward_issue.cuh"
#include "flashloom/ops/attention/sm90/backward_parts.cuh"
#include "flashloom/ops/attention/sm90/backward_pieces.cuh"
#include "flashloom/ops/attention/sm90/backward_places.cuh"
#include "flashloom/ops/attention/sm90/backward_produce.cuh"
#include "flashloom/ops/attention/sm90/backward_results.cuh"
#include "flashloom/ops/attention/sm90/backward_score.cuh"
#include "flashloom/ops/attention/sm90/backward_tile.cuh"

// A consumer warpgroup of the backward kernel: 64 keys.

namespace flashloom::sm90 {

template <class Shape>
struct BackwardConsumer : BackwardTile<Shape>, BackwardPlaces<Shape> {
  using Tile = BackwardTile<Shape>;
  using Places = BackwardPlaces<Shape>;
  using T = typename Shape::T;
  using Places::dq_place;
  using Places::give_place_back;
  using Places::place;
  using Places::take_room_back;
  using Tile::add_entropy;
  using Tile::gradients;
  using Tile::kDim;
  using Tile::kQueries;
  using Tile::kScores;
  using Tile::kSums;
  using typename Tile::Panels;

  /// dk and dv of this thread's places, unscaled, of one tile of keys; `parity` of its K and V.
  __device__ __forceinline__ void run(const BackwardParams& params, const BackwardWork& work,
                                      const BackwardShared<Shape>& shared, int32_t group,
                                      uint32_t parity, float (&dk)[kDim / 2], float (&dv)[kDim / 2],
                                      const BackwardMaps& maps) {
    using namespace cuda;
    const uint32_t thread = threadIdx.x % 128;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = thread / 32;
    const float scale_log2 = params.scale * kLog2e;
    const Problem& problem = params.problem;
    const Sequence& sequence = work.sequence;
    BackwardBarriers<Shape>& barriers = shared.barriers();
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) {
      dk[i] = dv[i] = 0;
    }
    // This thread's first key; worked out where it is needed, since registers are short.
    auto find_key = [&] {
      return static_cast<int32_t>(work.key + group * 64 + warp * 16 + lane / 4);
    };
    const auto row_barrier = static_cast<uint32_t>(2 + group);
    BackwardFollower<Shape> ring{params, work, shared, place, lane, row_barrier};
    ring.more = work.begin < work.end;
    if (ring.more || Shape::kStays) {
      mbarrier_wait(&barriers.k_full, parity, {"a consumer", "k_full"});
      if constexpr (!Shape::kSendsInPlace) {  // there it is the last to come
        mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
      }
      ring.start();
    }
    // From registers. Sums of rows that are stored but not used are those of nothing.
    auto store_dk = [&] {
      store_rows<T, kDim>(dk, params.scale, params.dk, problem.cu_key != nullptr ? 0 : work.batch,
                          work.head, sequence.key_first, find_key(), sequence.key_rows,
                          sequence.key_rows, params.accumulate, !Shape::kExact, params.columns,
                          lane);
    };
    auto store_dv = [&] {
      store_rows<T, kDim>(dv, Shape::kAdjusts ? params.score.keep : 1, params.dv,
                          problem.cu_key != nullptr ? 0 : work.batch, work.head, sequence.key_first,
                          find_key(), sequence.key_rows, sequence.key_rows, params.accumulate,
                          !Shape::kExact, params.value_columns, lane);
    };
    auto store_sums = [&] {
      store_dk();
      store_dv();
    };
    if (!ring.more) {
      if constexpr (!Shape::kSends) {
        store_sums();
      }
      if constexpr (Shape::kSendsInPlace) {
        mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
      }
      if constexpr (Shape::kStays) {
        give_place_back(&barriers.k_empty, lane);
        give_place_back(&barriers.v_empty, lane);
        take_room_back();
      }
      return;
    }
    const uint32_t k = shared_address(shared.k());
    const uint32_t v = shared_address(shared.v());
    const uint32_t own_k = k + group * 64 * Panels::kRowBytes;
    const uint32_t own_v = v + group * 64 * Panels::kRowBytes;
    // This warpgroup's part of dQ: half of the columns, or half of the queries.
    constexpr uint32_t kHalfPanels = 64 / Panels::kColumns;
    const uint32_t dq_k = kDim > 64 ? k + group * kHalfPanels * Panels::bytes(Shape::kKeys) : k;
    const uint32_t dq_ds = Shape::kSplitQueries            ? group * panel_bytes(Shape::kKeys)
                           : Shape::kSwapped && kDim == 64 ? group * Shape::kQueryColumns * 2
                                                           : 0;
    BackwardBorder<Shape> border;
    border.find(work, group);
    auto is_border = [&](int32_t t) { return border.holds(work, group, t); };
    ring.find_tail();
    float scores[kScores], dp[kScores], dq[kSums];
    uint32_t weights[kScores / 2], ds[kScores / 2];
    uint32_t slopes[kScores / 2] = {};  // in general scores
    bool given = !Shape::kLate;         // whether this step has a dQ to give

    if (!Shape::kPieces && work.key + Shape::kKeys > sequence.key_length &&
        (problem.cu_key != nullptr || problem.used_key != nullptr)) {
      if constexpr (Shape::kSendsInPlace) {
        mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
      }
      // Both warpgroups zero all, since dQ reads the keys of both.
      const int32_t keys = sequence.key_length - work.key;
      zero_rows<Shape::kPanels, Panels, Shape::kStays>(shared.k(), keys, Shape::kKeys, row_barrier);
      zero_rows<Shape::kPanels, Panels, Shape::kStays>(shared.v(), keys, Shape::kKeys, row_barrier);
    }
    uint32_t own_values[kDim / 16][4];
    if constexpr (Shape::kHoldsValues) {
      const uint32_t row = group * 64 + warp * 16 + lane % 16;
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        ldmatrix_x4(own_values[i], v + Panels::offset(row, 16 * i + 8 * (lane / 16), Shape::kKeys));
      }
      give_place_back(&barriers.v_empty, lane);
      take_room_back();
    } else if constexpr (Shape::kStays && Shape::kSends) {
      take_room_back();  // before the next dS is written there
    }
    const BackwardIssue<Shape> own{shared, *this, group, thread,     lane, warp, own_k,
                                   own_v,  dq_k,  dq_ds, scores,     dp,   dq,   weights,
                                   ds,     dk,    dv,    own_values, given};
    auto start_queries = [&] { own.start_queries(); };
    auto give_queries = [&] { own.give_queries(); };
    auto wait_for_turn = [&] { this->wait_for_turn(group); };
    auto pass_turn = [&] { this->pass_turn(group); };
    if constexpr (Shape::kPassesHidden) {
      // Of a tile of keys' first step, a causal mask may hide all from the later keys: their dS is
      // 0, which the other warpgroup's dQ needs, and nothing else comes of it. A vote, so that the
      // compiler knows the warp to be whole behind it.
      if (__any_sync(0xffffffffu,
                     work.end - work.begin > 1 && sequence.query_begin(work.key + group * 64) >=
                                                      (ring.walk.t + 1) * kQueries)) {
        if constexpr (Shape::kSendsInPlace) {
          mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
        }
        own.pass_ds();
        ring.pass();
      }
    }
    ring.wait_for_queries();
    if constexpr (Shape::kAhead) {
      own.start_scores();
    }
    while (true) {
      const uint32_t stage = place.stage;
      const int32_t t = ring.step_at(stage).t;
      const float* delta = shared.delta(stage) + 2 * (lane % 4);
      uint32_t kept = 0xffffffffu;  // pairs that dropout keeps
      if constexpr (Shape::kAhead) {
        wgmma_wait<0>();
        wgmma_hold(scores);
      } else {
        own.start_scores();
      }
      if constexpr (!Shape::kAdjusts) {
        if (Shape::kSendsInPlace && !given) {
          mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
        }
        ring.wait_for_values();
        own.start_dp(stage);
      }
      if constexpr (!Shape::kAhead) {
        wgmma_wait<Shape::kAdjusts ? 0 : 1>();
        wgmma_hold(scores);
      }
      const float factor = Shape::kAdjusts ? 1 : scale_log2;
      if constexpr (Shape::kAdjusts) {
        adjust_scores<Shape>(scores, slopes, params, work, ring.step_at(stage).head, find_key(),
                             t * kQueries, lane);
      }
      if constexpr (Shape::kPieces) {
        hide_in_pieces(scores, barriers.hidden[2 * place.parity + stage], params.blocks, find_key(),
                       lane);
        if (work.key + Shape::kKeys > sequence.key_length) {
          hide_keys_behind(scores, sequence.key_length - find_key());
        }
      } else {
        if constexpr (Shape::kLists) {
          hide_by_bits(scores, params.blocks, ring.step_at(stage).partial, find_key(), t * kQueries,
                       lane);
        }
        if (is_border(t)) {
          hide_queries(scores, sequence, find_key(), t * kQueries, lane);
        }
      }
      wait_for_turn();
      if constexpr (!Shape::kExpsBehind) {
        exponentials_in_place(scores, factor, shared.lse(stage) + 2 * (lane % 4));
      }
      if constexpr (Shape::kAdjusts) {
        if (params.score.seed != nullptr) {
          kept = kept_of_step<kScores>(params, work, ring.step_at(stage).head, find_key(),
                                       t * kQueries, lane);
        }
        ring.wait_for_values();
        own.start_dp(stage);  // not before: its registers would not suffice
      }
      if constexpr (Shape::kTellsBehind) {
        // The assembler would move the wait up before the rows' sums are read.
        block_fence(params.query_tiles);
      }
      wgmma_wait<0>();
      wgmma_hold(dp);
      if constexpr (Shape::kExpsBehind) {
        // 0, but only dP tells: else the assembler moves half of the exponentials before the wait.
        const int32_t none = Shape::kLists ? params.order.alone : params.blocks.partial_count;
        const auto nothing = __float_as_uint(dp[0]) & static_cast<uint32_t>(none);
        exponentials_in_place(scores, __uint_as_float(__float_as_uint(factor) | nothing),
                              shared.lse(stage) + 2 * (lane % 4));
      }
      uint32_t counted = kept;
      float keep = params.score.keep;
      if constexpr (Shape::kAdjusts) {
        if (params.dentropy != nullptr) {
          add_entropy(dp, scores, shared.dentropy(stage) + 2 * (lane % 4), kept, keep);
          counted = 0xffffffffu;
          keep = 1;
        }
      }
      gradients(ds, scores, dp, delta, slopes, counted, keep);
      own.store_ds();
      if constexpr (!Shape::kTellsBehind) {
        own.tell_ds();
      }
      pass_turn();
      round_to<T>(weights, scores);
      if constexpr (Shape::kAdjusts) {
        drop_pairs(weights, compute_here(kept));
      }
      own.start_values(stage);
      own.start_queries();
      own.start_keys(stage);
      if constexpr (Shape::kTellsBehind) {
        own.tell_ds();
      }
      if constexpr (Shape::kSeeks) {
        ring.next();
      }
      wgmma_wait<1>();
      wgmma_hold(dv);
      wgmma_hold(weights);
      wgmma_hold(dq);
      ring.release_values(stage);
      if (Shape::kLate && given && lane == 0) {
        mbarrier_arrive(&barriers.ds_empty[dq_place.stage]);
      }
      dq_place.advance();
      if constexpr (Shape::kAhead) {
        ring.next();
        // After the last step these scores are computed from a stale tile and never used:
        // cheaper than a second loop body.
        own.start_scores();
        own.give_queries();
        wgmma_wait<1>();
      } else {
        own.give_queries();
        if constexpr (!Shape::kSeeks) {
          ring.next();
        }
        wgmma_wait<0>();
      }
      wgmma_hold(dk);
      wgmma_hold(ds);
      ring.release_queries(stage);
      given = true;
      if (!ring.more) {
        break;
      }
    }
    if constexpr (Shape::kAhead) {
      wgmma_wait<0>();
      wgmma_hold(scores);
    }
    if constexpr (Shape::kSendsInPlace) {
      finish_in_place<Shape>(params, work, shared, maps, *this, group, dk, dv, dq, start_queries,
                             give_queries, store_dk, store_dv);
    } else if constexpr (Shape::kLate) {
      if constexpr (Shape::kStays && !Shape::kHoldsValues) {
        give_place_back(&barriers.v_empty, lane);
      }
      own.start_queries();
      if constexpr (!Shape::kSends && !Shape::kStays && !Shape::kParts) {
        store_sums();
      }
      wgmma_wait<0>();
      wgmma_hold(dq);
      if constexpr (Shape::kStays) {
        give_place_back(&barriers.ds_empty[dq_place.stage], lane);
        give_place_back(&barriers.k_empty, lane);
      }
      own.give_queries();
      if constexpr (!Shape::kSends && Shape::kStays) {
        store_sums();  // while the next keys are on their way
      }
      if constexpr (Shape::kParts) {
        if (join_parts<Shape>(params, shared, group, dk, dv)) {
          store_sums();
        }
      }
    } else if constexpr (!Shape::kSends) {
      store_sums();
    }
  }
};

}  // namespace flashloom::sm90
