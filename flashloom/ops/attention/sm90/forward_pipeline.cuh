#pragma once

#include "flashloom/ops/attention/sm90/forward_adjust.cuh"
#include "flashloom/ops/attention/sm90/forward_consumer.cuh"
#include "flashloom/ops/attention/sm90/forward_results.cuh"
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

  /// Ends the rows of the tile in `slot`; may run beside the last products.
  __device__ __forceinline__ void finish(uint32_t slot, const float (&maximum)[2],
                                         const float (&sum)[2], float (&inverse)[2]) {
    const ForwardWork& work = walk_.barriers.work[slot];
    finish_rows<Shape::kGeneral>(params_, work, work.tile.row + walk_.own_row(), walk_.lane,
                                 maximum, sum, inverse);
  }

  /// Results of the tile in `slot`, whose sums are known. prepare_store() ends the last basic block
  /// before them, so that store() can run beside exponentials.
  __device__ __forceinline__ void prepare_store(const float (&inverse)[2]) {
    results_.settle();
    clear_empty(consumer_.out, inverse);
  }

  __device__ __forceinline__ void store(uint32_t slot, const float (&inverse)[2]) {
    rescale_rows(consumer_.out, inverse);
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
    adjust_.prepare(params_, walk_);
    cuda::wgmma_wait<0>();
    cuda::wgmma_hold(consumer_.scores);
    walk_.release_keys();
    adjust_.finish(params_, walk_, consumer_.scores);
    moved_ = consumer_.settle_maximum(params_, factor_);
    // In the parts of step(): what a row's sum is must not depend on which tile a block has before.
    if constexpr (kBefore > 0) {
      consumer_.template exponentials<0, kBefore>(params_);
    }
    if constexpr (kBefore < kEighths) {
      consumer_.template exponentials<kBefore, kEighths>(params_);
    }
    cuda::wgmma_hold(consumer_.scores);
    adjust_.drop(params_, consumer_.scores);
    cuda::wgmma_hold(consumer_.scores);
    consumer_.pack();
    walk_.skip_values();
  }

  /// The products of a step: scores of this one, values of the one before.
  template <bool kPlain>
  __device__ __forceinline__ void issue() {
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
  }

  /// What the exponents of this step are relative to; `first`: it begins a tile of queries.
  template <bool kBorder>
  __device__ __forceinline__ void settle(bool first) {
    if constexpr (kBorder) {
      consumer_.first_maximum(params_);
      moved_ = true;
    } else {
      if (first) {
        consumer_.start_rows();
      }
      moved_ = consumer_.settle_maximum(params_, factor_);
    }
  }

  /// Ends the basic block of the exponentials that come before the wait for the values.
  __device__ __forceinline__ void end_early_exponentials() {
    if constexpr (Shape::kLateSums) {
      cuda::wgmma_hold(consumer_.scores);
      cuda::block_fence(params_.tiles);
    } else {
      if constexpr (kBefore > 0) {
        cuda::schedule_fence(consumer_.sum[0] + consumer_.sum[1]);
      }
      cuda::wgmma_hold(consumer_.scores);
    }
  }

  /// Results of the tile whose last values have been summed, beside exponentials of the next one.
  template <bool kBorder>
  __device__ __forceinline__ void end_tile(const float (&inverse)[2]) {
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
    issue<kPlain>();
    // In the shadow of the products.
    walk_.read_step();
    if constexpr (!kPlain) {
      adjust_.prepare(params_, walk_);
      results_.deliver(walk_);
    }
    if (moved_) {
      consumer_.set_limits(params_);
    }
    cuda::wgmma_wait<1>();
    cuda::wgmma_hold(consumer_.scores);
    walk_.release_keys();
    if constexpr (!kPlain) {
      adjust_.finish(params_, walk_, consumer_.scores);
    }
    const float sum[2] = {consumer_.sum[0], consumer_.sum[1]};
    const float maximum[2] = {consumer_.maximum[0], consumer_.maximum[1]};
    settle<kBorder>(last);
    if constexpr (kBefore > 0) {
      consumer_.template exponentials<0, kBefore>(params_);
    }
    if constexpr (Shape::kGeneral) {
      cuda::wgmma_hold(consumer_.scores);
      adjust_.drop(params_, consumer_.scores);
    }
    float inverse[2];
    if (last) {
      finish(walk_.done_slot(), maximum, sum, inverse);
    }
    end_early_exponentials();
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
      end_tile<kBorder>(inverse);
    } else if (moved_) {
      rescale_rows(consumer_.out, factor_);
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
  ForwardAdjust<Shape> adjust_;
  float factor_[2] = {1, 1};
  bool fresh_ = true;   // the next product of values is a tile's first
  bool moved_ = false;  // maxima moved in the last step
};

}  // namespace flashloom::sm90
