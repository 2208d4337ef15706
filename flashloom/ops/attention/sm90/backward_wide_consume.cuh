#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_wide_tile.cuh"

// The two consumer warpgroups of the kernel for dK and dV of heads with up to 256 columns.

namespace flashloom::sm90 {

/// kValues: the warpgroup of P and dV, which reads q for P and dout for dV; else that of dP, dS and
/// dK, which reads dout for dP and q for dK.
template <class Shape, bool kValues>
struct WideKeysConsumer : WideKeysTile<Shape> {
  using Tile = WideKeysTile<Shape>;
  using typename Tile::T;
  using Place = cuda::PipelineState<Shape::kStages>;
  using Tile::barriers;
  using Tile::issue_scores;
  using Tile::issue_sums;
  using Tile::kDim;
  using Tile::kScores;
  using Tile::lane;
  using Tile::params;
  using Tile::release;
  using Tile::shared;
  using Tile::sums;
  using Tile::wait_for;
  using Tile::work;
  static constexpr uint32_t kRowBarrier = kValues ? 2 : 3;
  static constexpr const char* kRole = kValues ? "values" : "keys";

  using Tile::Tile;

  /// Waits for the tile of the next scores and issues these, of the block's own k or v at `own`.
  __device__ __forceinline__ void issue_next(float (&scores)[kScores], uint32_t own,
                                             const Place& place, int32_t t) const {
    uint64_t* full = kValues ? &barriers.q_full[place.stage] : &barriers.dout_full[place.stage];
    char* tile = kValues ? shared.q(place.stage) : shared.dout(place.stage);
    wait_for(full, place.parity, tile, t, kRowBarrier);
    issue_scores(scores, own, cuda::shared_address(tile));
  }

  /// dV += P dO or dK += dS Q, of tile t.
  __device__ __forceinline__ void issue_last(const uint32_t (&operand)[kScores / 2], uint32_t stage,
                                             uint32_t parity, int32_t t) {
    if constexpr (kValues) {
      wait_for(&barriers.dout_full[stage], parity, shared.dout(stage), t, kRowBarrier);
    }
    issue_sums(operand, cuda::shared_address(kValues ? shared.dout(stage) : shared.q(stage)));
  }

  __device__ __forceinline__ void finish(float (&scores)[kScores], uint32_t& kept,
                                         const BackwardStep& at, uint32_t stage,
                                         uint32_t step) const {
    if constexpr (kValues) {
      this->finish_scores(scores, kept, at, stage, step);
    } else {
      this->finish_gradients(scores, stage, step);
    }
  }

  static __device__ __forceinline__ void pack(uint32_t (&operand)[kScores / 2],
                                              const float (&scores)[kScores], uint32_t kept) {
    if constexpr (kValues) {
      Tile::pack_weights(operand, scores, kept);
    } else {
      Tile::pack_gradients(operand, scores);
    }
  }

  __device__ __forceinline__ void run() {
    using namespace cuda;
    BackwardWalk<Shape> walk;
    if (!walk.start(params, work)) {
      return;
    }
    const uint32_t own = shared_address(kValues ? shared.k() : shared.v());
    float scores[kScores];  // or dP
    uint32_t operand[kScores / 2];
    uint32_t kept = 0xffffffffu;
    Place place;
    uint32_t step = 0;
    mbarrier_wait(kValues ? &barriers.k_full : &barriers.v_full, 0, {kRole, "k_full or v_full"});
    issue_next(scores, own, place, walk.t);
    wgmma_wait<0>();
    finish(scores, kept, walk, 0, 0);
    pack(operand, scores, kept);
    while (true) {
      const uint32_t stage = place.stage;
      const uint32_t parity = place.parity;
      const int32_t t = walk.t;
      if constexpr (!kValues) {
        // The other warpgroup has zeroed rows of this tile before it handed P over.
        mbarrier_wait(&barriers.q_full[stage], parity, {kRole, "q_full"});
      }
      ++step;
      place.advance();
      if (!walk.advance(params, work)) {
        issue_last(operand, stage, parity, t);
        break;
      }
      const auto finish_last = [&] {
        wgmma_hold(sums);
        wgmma_hold(operand);
        release(kValues ? &barriers.dout_empty[stage] : &barriers.q_empty[stage]);
      };
      wgmma_hold(operand);
      wgmma_hold(sums);
      if constexpr (Shape::kSumsFirst) {
        issue_last(operand, stage, parity, t);
        issue_next(scores, own, place, walk.t);
        wgmma_wait<1>();
        finish_last();
        wgmma_wait<0>();
        finish(scores, kept, walk, place.stage, step);
      } else {
        issue_next(scores, own, place, walk.t);
        issue_last(operand, stage, parity, t);
        wgmma_wait<1>();
        finish(scores, kept, walk, place.stage, step);
        wgmma_wait<0>();
        finish_last();
      }
      pack(operand, scores, kept);
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(operand);
  }

  __device__ __forceinline__ void store(const RowTensor& out, float factor, int32_t columns) const {
    const Sequence& sequence = work.sequence;
    store_rows<T, kDim>(sums, factor, out, params.problem.cu_key != nullptr ? 0 : work.batch,
                        work.head, sequence.key_first, this->own_row(), sequence.key_length,
                        sequence.key_rows, params.accumulate, true, columns, lane);
  }
};

}  // namespace flashloom::sm90
