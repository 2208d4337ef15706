#pragma once

#include <cstdint>
#include <type_traits>

#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/sm90/backward_finish.cuh"
#include "flashloom/ops/attention/sm90/backward_hide.cuh"
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
  using Places::ds_place;
  using Places::give_place_back;
  using Places::place;
  using Places::sum_place;
  using Places::take_room_back;
  using Tile::add_entropy;
  using Tile::give;
  using Tile::gradients;
  using Tile::issue_keys;
  using Tile::issue_queries;
  using Tile::issue_scores;
  using Tile::issue_values;
  using Tile::kDim;
  using Tile::kQueries;
  using Tile::kScores;
  using Tile::kSums;
  using Tile::store_gradients;
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
    std::conditional_t<Shape::kPieces, BackwardLeft,
                       std::conditional_t<Shape::kStays, BackwardCount<Shape>, BackwardWalk<Shape>>>
        walk = {};
    bool more = work.begin < work.end;
    if (more || Shape::kStays) {
      mbarrier_wait(&barriers.k_full, parity, {"a consumer", "k_full"});
      if constexpr (!Shape::kSendsInPlace) {  // there it is the last to come
        mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
      }
      if constexpr (Shape::kTold) {
        mbarrier_wait(&barriers.q_full[0], 0, {"a consumer", "q_full"});
        more = barriers.steps[0].t >= 0;
      } else {
        walk.start(params, work);
      }
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
    if (!more) {
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
    // The tile whose last rows are not this sequence's, if any holds something else than zeros.
    const bool others =
        !Shape::kPieces && (problem.cu_query != nullptr || problem.used_query != nullptr);
    const int32_t tail =
        others && sequence.query_length % kQueries != 0 ? sequence.query_length / kQueries : -1;
    const auto row_barrier = static_cast<uint32_t>(2 + group);
    float scores[kScores], dp[kScores], dq[kSums];
    uint32_t weights[kScores / 2], ds[kScores / 2];
    uint32_t slopes[kScores / 2] = {};  // in general scores
    bool given = !Shape::kLate;         // whether this step has a dQ to give

    auto step_at = [&](uint32_t stage) -> BackwardStep {
      return Shape::kTold ? barriers.steps[stage] : walk;
    };
    auto wait_for = [&](uint64_t* full, char* tile, int32_t t) {
      mbarrier_wait(full, place.parity, {"a consumer", "q_full or dout_full"});
      if (t == tail) {
        zero_rows<Shape::kPanels, Panels>(tile, sequence.query_length % kQueries, kQueries,
                                          row_barrier);
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

    if (!Shape::kPieces && work.key + Shape::kKeys > sequence.key_length &&
        (problem.cu_key != nullptr || problem.used_key != nullptr)) {
      if constexpr (Shape::kSendsInPlace) {
        mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
      }
      // Both warpgroups zero all, since dQ reads the keys of both.
      const int32_t keys = sequence.key_length - work.key;
      zero_rows<Shape::kPanels, Panels>(shared.k(), keys, Shape::kKeys, row_barrier);
      zero_rows<Shape::kPanels, Panels>(shared.v(), keys, Shape::kKeys, row_barrier);
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
    auto start_scores = [&] {
      wgmma_hold(scores);
      wgmma_fence();
      issue_scores(scores, own_k, shared_address(shared.q(place.stage)));
    };
    auto start_dp = [&](uint32_t stage) {
      const uint32_t dout = shared_address(shared.dout(stage));
      if constexpr (Shape::kHoldsValues) {
        issue_registers_by_rows<T, kDim, kQueries, Panels>(dp, own_values, dout);
      } else {
        issue_values(dp, own_v, dout);
      }
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
    auto start_queries = [&] {
      if constexpr (Shape::kLate) {
        mbarrier_wait(&barriers.ds_full[dq_place.stage], dq_place.parity,
                      {"a consumer", "ds_full"});
      } else {
        fence_async_shared();
        named_barrier_sync(1, 256, {"a consumer", "the other's dS"});
      }
      wgmma_hold(dq);
      wgmma_fence();
      const uint32_t from = Shape::kLate ? dq_place.stage : ds_place.stage ^ 1;
      issue_queries(dq, shared_address(shared.ds(from)) + dq_ds, dq_k);
    };
    auto give_queries = [&] {
      if (given) {
        give(dq, shared, group, sum_place, thread);
        sum_place.advance();
      }
    };
    // dS for both warpgroups.
    auto store_ds = [&] {
      if constexpr (Shape::kLate) {
        mbarrier_wait(&barriers.ds_empty[ds_place.stage], ds_place.parity ^ 1,
                      {"a consumer", "ds_empty"});
      }
      // Lane l of stmatrix: row l % 16, columns 8 (l / 16).
      const uint32_t row = group * 64 + warp * 16 + lane % 16;
      store_gradients(ds, shared_address(shared.ds(ds_place.stage)), row, lane);
    };
    auto tell_ds = [&] {
      if constexpr (Shape::kLate) {
        fence_async_shared();
        __syncwarp();
        if (lane == 0) {
          mbarrier_arrive(&barriers.ds_full[ds_place.stage]);
        }
      }
      ds_place.advance();
    };
    auto wait_for_turn = [&] { this->wait_for_turn(group); };
    auto pass_turn = [&] { this->pass_turn(group); };
    // The next step, whose tile of queries has come.
    auto next = [&] {
      place.advance();
      if constexpr (Shape::kTold) {
        mbarrier_wait(&barriers.q_full[place.stage], place.parity, {"a consumer", "q_full"});
        more = step_at(place.stage).t >= 0;
      } else {
        more = walk.advance(params, work);
      }
      if (more) {
        wait_for(&barriers.q_full[place.stage], shared.q(place.stage), step_at(place.stage).t);
      }
    };
    auto wait_for_values = [&] {
      if (more) {
        wait_for(&barriers.dout_full[place.stage], shared.dout(place.stage),
                 step_at(place.stage).t);
      }
    };
    if constexpr (Shape::kPassesHidden) {
      // Of a tile of keys' first step, a causal mask may hide all from the later keys: their dS is
      // 0, which the other warpgroup's dQ needs, and nothing else comes of it. A vote, so that the
      // compiler knows the warp to be whole behind it.
      if (__any_sync(0xffffffffu,
                     work.end - work.begin > 1 &&
                         sequence.query_begin(work.key + group * 64) >= (walk.t + 1) * kQueries)) {
        const uint32_t stage = place.stage;
        if constexpr (Shape::kSendsInPlace) {
          mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
        }
        // So that no later wait takes this turn of the ring for its own.
        mbarrier_wait(&barriers.q_full[stage], place.parity, {"a consumer", "q_full"});
        mbarrier_wait(&barriers.dout_full[stage], place.parity, {"a consumer", "dout_full"});
#pragma unroll
        for (int i = 0; i < kScores / 2; ++i) {
          ds[i] = 0;
        }
        store_ds();
        tell_ds();
        release_values(stage);
        release_queries(stage);
        dq_place.advance();
        place.advance();
        walk.advance(params, work);
        given = true;
      }
    }
    wait_for(&barriers.q_full[place.stage], shared.q(place.stage), step_at(place.stage).t);
    if constexpr (Shape::kAhead) {
      start_scores();
    }
    while (true) {
      const uint32_t stage = place.stage;
      const int32_t t = step_at(stage).t;
      const float* delta = shared.delta(stage) + 2 * (lane % 4);
      uint32_t kept = 0xffffffffu;  // pairs that dropout keeps
      if constexpr (Shape::kAhead) {
        wgmma_wait<0>();
        wgmma_hold(scores);
      } else {
        start_scores();
      }
      if constexpr (!Shape::kAdjusts) {
        if (Shape::kSendsInPlace && !given) {
          mbarrier_wait(&barriers.v_full, parity, {"a consumer", "v_full"});
        }
        wait_for_values();
        wgmma_hold(dp);
        wgmma_fence();
        start_dp(stage);
      }
      if constexpr (!Shape::kAhead) {
        wgmma_wait<Shape::kAdjusts ? 0 : 1>();
        wgmma_hold(scores);
      }
      const float factor = Shape::kAdjusts ? 1 : scale_log2;
      if constexpr (Shape::kAdjusts) {
        adjust_scores<Shape>(scores, slopes, params, work, step_at(stage).head, find_key(),
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
          hide_by_bits(scores, params.blocks, step_at(stage).partial, find_key(), t * kQueries,
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
          kept = kept_of_step<kScores>(params, work, step_at(stage).head, find_key(), t * kQueries,
                                       lane);
        }
        wait_for_values();
        wgmma_hold(dp);  // not before: its registers would not suffice
        wgmma_fence();
        start_dp(stage);
      }
      if constexpr (Shape::kTellsBehind) {
        // The assembler would move the wait up before the rows' sums are read.
        block_fence(params.query_tiles);
      }
      wgmma_wait<0>();
      wgmma_hold(dp);
      if constexpr (Shape::kExpsBehind) {
        // 0, but only dP tells: else the assembler moves half of the exponentials before the wait.
        const int32_t none = Shape::kLists ? params.order.section : params.blocks.partial_count;
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
      store_ds();
      if constexpr (!Shape::kTellsBehind) {
        tell_ds();
      }
      pass_turn();
      round_to<T>(weights, scores);
      if constexpr (Shape::kAdjusts) {
        drop_pairs(weights, compute_here(kept));
      }
      start_values(stage);
      start_queries();
      start_keys(stage);
      if constexpr (Shape::kTellsBehind) {
        tell_ds();
      }
      if constexpr (Shape::kSeeks) {
        next();
      }
      wgmma_wait<1>();
      wgmma_hold(dv);
      wgmma_hold(weights);
      wgmma_hold(dq);
      release_values(stage);
      if (Shape::kLate && given && lane == 0) {
        mbarrier_arrive(&barriers.ds_empty[dq_place.stage]);
      }
      dq_place.advance();
      if constexpr (Shape::kAhead) {
        next();
        // After the last step these scores are computed from a stale tile and never used:
        // cheaper than a second loop body.
        start_scores();
        give_queries();
        wgmma_wait<1>();
      } else {
        give_queries();
        if constexpr (!Shape::kSeeks) {
          next();
        }
        wgmma_wait<0>();
      }
      wgmma_hold(dk);
      wgmma_hold(ds);
      release_queries(stage);
      given = true;
      if (!more) {
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
      start_queries();
      if constexpr (!Shape::kSends && !Shape::kStays) {
        store_sums();
      }
      wgmma_wait<0>();
      wgmma_hold(dq);
      if constexpr (Shape::kStays) {
        give_place_back(&barriers.ds_empty[dq_place.stage], lane);
        give_place_back(&barriers.k_empty, lane);
      }
      give_queries();
      if constexpr (!Shape::kSends && Shape::kStays) {
        store_sums();  // while the next keys are on their way
      }
    } else if constexpr (!Shape::kSends) {
      store_sums();
    }
  }
};

}  // namespace flashloom::sm90
