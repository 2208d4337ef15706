#pragma once

#include "flashloom/ops/attention/sm90/forward_rule.cuh"
#include "flashloom/ops/attention/sm90/forward_scores.cuh"
#include "flashloom/ops/attention/sm90/forward_walk.cuh"

namespace flashloom::sm90 {

/// What happens to a step's scores before the softmax, and to its weights behind it.
template <class Shape>
class ForwardAdjust {
 public:
  using Walk = ForwardWalk<Shape>;
  using Scorer = ForwardScorer<Shape>;

  /// What a step needs to know beside its scores; runs while they are computed.
  __device__ __forceinline__ void prepare(const ForwardParams& params, const Walk& walk) {
    if constexpr (Shape::kListed) {
      if (kEarlyBits && walk.partial >= 0) {
        Scorer::load_bits(params, walk.partial, walk.own_row(), bits_);
      }
    }
    if constexpr (Shape::kGeneral) {
      if (params.rule.seed != nullptr) {
        const ForwardWork& work = walk.work();
        Scorer::draw(
            params, work.tile,
            static_cast<uint32_t>(work.sequence.query_start + work.tile.row + walk.own_row()),
            static_cast<uint32_t>(params.problem.key_start + walk.tile * Shape::kKeys), walk.lane,
            kept_);
      }
    }
  }

  /// Scores become what enters the softmax.
  __device__ __forceinline__ void finish(const ForwardParams& params, const Walk& walk,
                                         float (&scores)[Scorer::kScores]) {
    const ForwardWork& work = walk.work();
    const int32_t row = work.tile.row + walk.own_row();
    const int32_t tile = walk.seen();
    const int32_t key = tile * Shape::kKeys;
    if constexpr (Shape::kGeneral) {
      const int32_t distance =
          key + 2 * static_cast<int32_t>(walk.lane % 4) - row - work.sequence.offset;
      if (params.rule.adjusts) {
        Scorer::adjust(params, scores);
      }
      if (params.rule.slopes != nullptr) {
        Scorer::add_slope(walk.barriers.slopes[walk.slot] * params.rule.slope_unit, scores,
                          distance);
      }
      if (params.rule.exclude_self) {
        Scorer::exclude_self(scores, distance);
      }
    }
    if (tile >= walk.closed || tile < walk.open) {
      mask_scores(scores, work.sequence, row, key, walk.lane, tile < walk.open);
    }
    if constexpr (Shape::kListed) {
      if (walk.partial >= 0) {
        if constexpr (!kEarlyBits) {
          Scorer::load_bits(params, walk.partial, walk.own_row(), bits_);
        }
        Scorer::apply_bits(bits_, walk.lane, scores);
      }
      if (walk.tile < 0) {
        hide_scores(scores);
      }
    }
  }

  __device__ __forceinline__ void drop(const ForwardParams& params,
                                       float (&weights)[Scorer::kScores]) const {
    if constexpr (Shape::kGeneral) {
      if (params.rule.seed != nullptr) {
        Scorer::drop(kept_, weights);
      }
    }
  }

 private:
  // At D 256, and where four warpgroups share the registers, there are none for bits beside running
  // products.
  static constexpr bool kEarlyBits = Shape::kDim <= 128 && Shape::kBlockGroups < 4;

  typename Scorer::Bits bits_;
  typename Scorer::Kept kept_;
};

}  // namespace flashloom::sm90
