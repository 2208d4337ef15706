#pragma once

#include "flashloom/ops/attention/sm90/forward_consumer.cuh"
#include "flashloom/ops/attention/sm90/forward_results.cuh"
#include "flashloom/ops/attention/sm90/forward_rule.cuh"
#include "flashloom/ops/attention/sm90/forward_walk.cuh"

namespace flashloom::sm90 {

/// One consumer warpgroup's walk over tiles of queries and, within each, over tiles of keys.
///
/// The steps of all tiles form one pipeline: the scores of the next step, be it of the same tile of
/// queries or of the next, are computed while the values of this one are summed.
template <class Shape>
class ForwardPipeline {
 public:
  __device__ __forceinline__ ForwardPipeline(const ForwardParams& params, const CUtensorMap* out,
                                             uint32_t q_tiles, uint32_t k_tiles, uint32_t v_tiles,
                                             ForwardBarriers<Shape>& barriers, int32_t group)
      : params_(params),
        q_tiles_(q_tiles + group * 64 * cuda::kPanelRowBytes),
        k_tiles_(k_tiles),
        v_tiles_(v_tiles),
        walk_{barriers, group, threadIdx.x % 32},
        results_{params, out,
                 v_tiles + Shape::kStages * Shape::kTileBytes +
                     group * Shape::kOutPanels * Shape::kOutPanelBytes +
                     threadIdx.x % 128 / 32 * 16 * cuda::kPanelRowBytes} {}

  __device__ __forceinline__ void run() {
    walk_.start();
    walk_.next_tile();
    while (walk_.state != Walk::State::done) {
      if (walk_.state == Walk::State::idle) {
        walk_.pass_tile(params_);
        walk_.next_tile();
        continue;
      }
      first_step();
      while (rare_step()) {
        if constexpr (!Shape::kGeneral) {
          // Most steps are alike: no end of a tile of queries, nothing to hide or to send.
          while (!walk_.last && !fresh_ && results_.owed < 0 && walk_.plain_next()) {
            step<Step::plain>();
          }
        }
      }
      last_values();
      if constexpr (!Walk::kChained) {
        walk_.next_tile();
      }
    }
  }

 private:
  using Walk = ForwardWalk<Shape>;

  enum class Step {
    plain,   // see run()
    border,  // ends a tile of queries, see ForwardShape::kBorders
    other,
  };

  // Groups of eight keys whose exponentials are taken before the values have been summed. Those of
  // the others run beside the packing of all, which needs the registers that the sum read. Dropout
  // changes what is packed, so there is nothing left for then.
  static constexpr int kEighths = ForwardConsumer<Shape>::kEighths;
  static constexpr int kBefore = Shape::kGeneral ? kEighths : kEighths * Shape::kEarly / 4;

  // At D 256, and where four warpgroups share the registers, there are none for bits beside running
  // products.
  static constexpr bool kEarlyBits = Shape::kDim <= 128 && Shape::kBlockGroups < 4;

  /// Ends the rows of the tile in `slot`; may run beside the last products.
  __device__ __forceinline__ void finish(uint32_t slot, const float (&maximum)[2],
                                         const float (&sum)[2], float (&inverse)[2]) {
    const ForwardWork& work = walk_.barriers.work[slot];
    consumer_.finish_rows(params_, work, work.tile.row + walk_.own_row(), walk_.lane, maximum, sum,
                          inverse);
  }

  /// Results of the tile in `slot`, whose sums are known. prepare_store() ends the last basic block
  /// before them, so that store() can run beside exponentials.
  __device__ __forceinline__ void prepare_store(const float (&inverse)[2]) {
    results_.settle();
    consumer_.clear_empty(inverse);
  }

  __device__ __forceinline__ void store(uint32_t slot, const float (&inverse)[2]) {
    consumer_.rescale(inverse);
    results_.take(walk_, consumer_, slot);
  }

  __device__ __forceinline__ void issue_scores() {
    uint32_t queries = q_tiles_ + walk_.q_place.stage * Shape::kQBytes;
    if constexpr (Shape::kGeneral && Shape::kDim > 128) {
      // Descriptors of the one buffer would be held in registers that are not there.
      asm volatile("" : "+r"(queries));
    }
    consumer_.issue_scores(queries, k_tiles_ + walk_.k_place.stage * Shape::kTileBytes);
  }

  template <bool kPlain = false>
  __device__ __forceinline__ void issue_values() {
    consumer_.issue_out(v_tiles_ + walk_.v_place.stage * Shape::kTileBytes, !kPlain && fresh_);
    fresh_ = false;
  }

  /// What a step needs to know beside its scores; runs while they are computed.
  __device__ __forceinline__ void prepare() {
    if constexpr (Shape::kListed) {
      if (kEarlyBits && walk_.partial >= 0) {
        ForwardScorer<Shape>::load_bits(params_, walk_.partial, walk_.own_row(), bits_);
      }
    }
    if constexpr (Shape::kGeneral) {
      if (params_.rule.seed != nullptr) {
        const ForwardWork& work = walk_.work();
        ForwardScorer<Shape>::draw(
            params_, work.tile,
            static_cast<uint32_t>(work.sequence.query_start + work.tile.row + walk_.own_row()),
            static_cast<uint32_t>(params_.problem.key_start + walk_.tile * Shape::kKeys),
            walk_.lane, kept_);
      }
    }
  }

  /// Scores as they enter the softmax.
  __device__ __forceinline__ void finish_scores() {
    const ForwardWork& work = walk_.work();
    const int32_t row = work.tile.row + walk_.own_row();
    const int32_t tile = walk_.seen();
    const int32_t key = tile * Shape::kKeys;
    if constexpr (Shape::kGeneral) {
      const int32_t distance =
          key + 2 * static_cast<int32_t>(walk_.lane % 4) - row - work.sequence.offset;
      if (params_.rule.adjusts) {
        ForwardScorer<Shape>::adjust(params_, consumer_.scores);
      }
      if (params_.rule.slopes != nullptr) {
        ForwardScorer<Shape>::add_slope(walk_.barriers.slopes[walk_.slot] * params_.rule.slope_unit,
                                        consumer_.scores, distance);
      }
      if (params_.rule.exclude_self) {
        ForwardScorer<Shape>::exclude_self(consumer_.scores, distance);
      }
    }
    if (tile >= walk_.closed || tile < walk_.open) {
      consumer_.mask(work.sequence, row, key, walk_.lane, tile < walk_.open);
    }
    if constexpr (Shape::kListed) {
      if (walk_.partial >= 0) {
        if constexpr (!kEarlyBits) {
          ForwardScorer<Shape>::load_bits(params_, walk_.partial, walk_.own_row(), bits_);
        }
        ForwardScorer<Shape>::apply_bits(bits_, walk_.lane, consumer_.scores);
      }
      if (walk_.tile < 0) {
        consumer_.hide();
      }
    }
  }

  __device__ __forceinline__ void drop() {
    if constexpr (Shape::kGeneral) {
      if (params_.rule.seed != nullptr) {
        ForwardScorer<Shape>::drop(kept_, consumer_.scores);
      }
    }
  }

  /// A step that is not plain.
  __device__ __forceinline__ bool rare_step() {
    if constexpr (Shape::kBorders) {
      if (walk_.last) {
        return step<Step::border>();
      }
    }
    return step<Step::other>();
  }

  /// The first scores of a tile with no tile before it to hide under.
  __device__ __forceinline__ void first_step() {
    consumer_.start_rows();
    fresh_ = true;
    walk_.wait_keys();
    walk_.take_turn();
    cuda::wgmma_hold(consumer_.scores);
    cuda::wgmma_fence();
    issue_scores();
    walk_.pass_turn();
    walk_.read_step();
    prepare();
    cuda::wgmma_wait<0>();
    cuda::wgmma_hold(consumer_.scores);
    walk_.release_keys();
    finish_scores();
    moved_ = consumer_.settle_maximum(params_, factor_);
    // In the parts of step(): what a row's sum is must not depend on which tile a block has before.
    if constexpr (kBefore > 0) {
      consumer_.template exponentials<0, kBefore>(params_);
    }
    if constexpr (kBefore < kEighths) {
      consumer_.template exponentials<kBefore, kEighths>(params_);
    }
    cuda::wgmma_hold(consumer_.scores);
    drop();
    cuda::wgmma_hold(consumer_.scores);
    consumer_.pack();
    walk_.skip_values();
  }

  /// Values of this step beside scores of the next; false if no tile follows to go on with. A plain
  /// step is one of those that run() tells apart.
  template <Step kStep>
  __device__ __forceinline__ bool step() {
    constexpr bool kPlain = kStep == Step::plain;
    constexpr bool kBorder = kStep == Step::border;
    const bool last = kBorder || (!Shape::kBorders && !kPlain && walk_.last);
    if (last) {
      walk_.end_tile();
      if constexpr (!Walk::kChained) {
        return false;
      }
      walk_.next_tile();
      if (walk_.state != Walk::State::work) {
        return false;
      }
    }
    if constexpr (Shape::kLeads && !kPlain) {
      walk_.skip_behind();
    }
    walk_.wait_keys();
    walk_.take_turn();
    cuda::wgmma_hold(consumer_.scores);
    cuda::wgmma_hold(consumer_.weights);
    cuda::wgmma_hold(consumer_.out);
    cuda::wgmma_fence();
    issue_scores();
    walk_.wait_values();
    cuda::wgmma_hold(consumer_.out);
    cuda::wgmma_fence();
    issue_values<kPlain>();
    walk_.pass_turn();
    // In the shadow of the products.
    walk_.read_step();
    if constexpr (!kPlain) {
      prepare();
      results_.deliver(walk_);
    }
    if (moved_) {
      consumer_.set_limits(params_);
    }
    cuda::wgmma_wait<1>();
    cuda::wgmma_hold(consumer_.scores);
    walk_.release_keys();
    if constexpr (!kPlain) {
      finish_scores();
    }
    const float sum[2] = {consumer_.sum[0], consumer_.sum[1]};
    const float maximum[2] = {consumer_.maximum[0], consumer_.maximum[1]};
    if constexpr (kBorder) {
      consumer_.first_maximum(params_);
      moved_ = true;
    } else {
      if (last) {
        consumer_.start_rows();
      }
      moved_ = consumer_.settle_maximum(params_, factor_);
    }
    if constexpr (kBefore > 0) {
      consumer_.template exponentials<0, kBefore>(params_);
    }
    if constexpr (Shape::kGeneral) {
      cuda::wgmma_hold(consumer_.scores);
      drop();
    }
    float inverse[2];
    if (last) {
      finish(walk_.done_slot(), maximum, sum, inverse);
    }
    if constexpr (Shape::kLateSums) {
      cuda::wgmma_hold(consumer_.scores);
      cuda::block_fence(params_.tiles);
    } else {
      if constexpr (kBefore > 0) {
        cuda::schedule_fence(consumer_.sum[0] + consumer_.sum[1]);
      }
      cuda::wgmma_hold(consumer_.scores);
    }
    cuda::wgmma_wait<0>();
    cuda::wgmma_hold(consumer_.out);
    cuda::wgmma_hold(consumer_.weights);
    walk_.release_values();
    if constexpr (Shape::kLeads && !kPlain) {
      walk_.skip_values();
    }
    if constexpr (kBorder) {
      prepare_store(inverse);
    }
    if constexpr (kBefore < kEighths) {
      consumer_.template exponentials<kBefore, kEighths>(params_);
      consumer_.pack();
    }
    if (last) {
      if constexpr (kBorder) {
        // Beside exponentials too: maxima have moved for certain.
        consumer_.set_limits(params_);
        moved_ = false;
      } else {
        prepare_store(inverse);
      }
      store(walk_.done_slot(), inverse);
      walk_.skip_values();
      fresh_ = true;
    } else if (moved_) {
      consumer_.rescale(factor_);
    }
    if constexpr (kBefore == kEighths) {
      consumer_.pack();
    }
    return true;
  }

  /// The end of a tile that no scores run beside.
  __device__ __forceinline__ void last_values() {
    walk_.wait_values();
    cuda::wgmma_hold(consumer_.out);
    cuda::wgmma_hold(consumer_.weights);
    cuda::wgmma_fence();
    issue_values();
    results_.deliver(walk_);
    float inverse[2];
    finish(walk_.done_slot(), consumer_.maximum, consumer_.sum, inverse);
    cuda::wgmma_wait<0>();
    cuda::wgmma_hold(consumer_.out);
    walk_.release_values();
    walk_.skip_values();
    prepare_store(inverse);
    store(walk_.done_slot(), inverse);
    results_.deliver(walk_);
  }

  const ForwardParams& params_;
  uint32_t q_tiles_, k_tiles_, v_tiles_;
  Walk walk_;
  ForwardResults<Shape> results_;
  ForwardConsumer<Shape> consumer_;
  typename ForwardScorer<Shape>::Bits bits_;
  typename ForwardScorer<Shape>::Kept kept_;
  float factor_[2] = {1, 1};
  bool fresh_ = true;   // the next product of values is a tile's first
  bool moved_ = false;  // maxima moved in the last step
};

}  // namespace flashloom::sm90
