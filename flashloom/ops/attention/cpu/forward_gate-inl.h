// The gate of the forward pass: which tiles have only small scores, and what skipping them loses.
// Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_GATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_GATE_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_GATE_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_GATE_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

#include "flashloom/ops/attention/cpu/attention_forward_plan.h"
#include "flashloom/ops/attention/cpu/tile_mask-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

/// Which queries a task works on.
struct ForwardPlace {
  int32_t sequence;
  int32_t head;  // the first of the task's
  int64_t query_tile;
  int64_t first;   // query
  int64_t count;   // queries that exist
  int64_t panels;  // of a head
};

// Largest score of a row before it has seen a key: finite, so that differences are never NaN.
constexpr float kNothing = -1e30f;

template <int NV>
class ForwardGate {
 public:
  static constexpr int kWidth = NV * kLanes;

  ForwardGate(const ForwardPlan& plan, const ForwardScratch& scratch, const ForwardPlace& place)
      : plan_(plan), scratch_(scratch), place_(place) {}

  struct Survey {
    bool any;  // pair is visible
    bool low;  // enough for the gate, all rows, and no pair hidden by a bias
  };

  Survey survey(int64_t h, int64_t panel, int64_t panel_rows, const PanelRange& range,
                const float* scores) {
    const Lanes d;
    float* tops = scratch_.tops + panel * kWidth;
    const auto hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
    auto least = hn::Set(d, std::numeric_limits<float>::infinity());
    for (int c = 0; c < kWidth; c += kLanes) {
      auto top = hidden;
      for (int64_t k = range.first; k < range.last; ++k) {
        top = hn::Max(top, hn::Load(d, scores + k * kWidth + c));
        least = hn::Min(least, hn::Load(d, scores + k * kWidth + c));
      }
      hn::Store(top, d, tops + c);
    }
    const AttentionGate& gate = plan_.options->gate;
    const ConstTensorView row = gate.threshold.select(0, place_.head + h);
    const float threshold =
        row.as<float>()[std::min(place_.query_tile, row.dim(0) - 1) * row.stride(0)] *
        std::numbers::log2e_v<float>;
    const float* largest = scratch_.largest + (h * place_.panels + panel) * kWidth;
    Survey result = {false, hn::AllTrue(d, hn::Gt(least, hidden))};
    for (int64_t lane = 0; lane < panel_rows; ++lane) {
      result.any = result.any || tops[lane] > -std::numeric_limits<float>::infinity();
      const bool low = gate.kind == AttentionGate::Kind::absolute
                           ? tops[lane] < threshold
                           : largest[lane] - tops[lane] > threshold;
      result.low = result.low && low;
    }
    return result;
  }

  // A skipped tile takes at most (keys) exp(its largest score) from each row.
  void note_loss(int64_t h, int64_t panel) {
    const int64_t at = (h * place_.panels + panel) * kWidth;
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const float top = scratch_.tops[panel * kWidth + lane];
      float& largest = scratch_.lost_largest[at + lane];
      float& sum = scratch_.lost_sum[at + lane];
      const float next = std::max(largest, top);
      sum = sum * std::exp2(largest - next) +
            static_cast<float>(plan_.tile.keys) * std::exp2(top - next);
      largest = next;
    }
  }

  // Tasks own whole rows of the bitmap.
  TensorView kept_words(int64_t h) const {
    return plan_.options->gate.kept.select(0, place_.sequence)
        .select(0, place_.head + h)
        .select(0, place_.query_tile);
  }

  void mark_kept(int64_t h, int64_t tile) {
    if (plan_.options->gate.kept) {
      const TensorView words = kept_words(h);
      int32_t& word = words.as<int32_t>()[tile / 32 * words.stride(0)];
      word = static_cast<int32_t>(static_cast<uint32_t>(word) | uint32_t{1} << (tile % 32));
    }
  }

  void start() {
    const int64_t lanes = plan_.heads * place_.panels * kWidth;
    std::fill_n(scratch_.lost_largest, lanes, kNothing);
    std::fill_n(scratch_.lost_sum, lanes, 0.0f);
    for (int64_t h = 0; plan_.options->gate.kept && h < plan_.heads; ++h) {
      const TensorView words = kept_words(h);
      for (int64_t w = 0; w < words.dim(0); ++w) {
        words.as<int32_t>()[w * words.stride(0)] = 0;
      }
    }
  }

  // Share of the row's whole mass that skipped tiles had at most.
  void store_loss(int32_t h, int64_t state, int64_t query, int64_t lane, float lse) const {
    const float sum = scratch_.lost_sum[state * kWidth + lane];
    const float log_lost = scratch_.lost_largest[state * kWidth + lane] + std::log2(sum);
    const float kept = lse * std::numbers::log2e_v<float>;
    const TensorView rows =
        plan_.options->gate.dropped_mass.select(0, place_.sequence).select(0, place_.head + h);
    rows.as<float>()[query * rows.stride(0)] =
        sum > 0 ? 1 / (1 + std::exp2(kept - log_lost)) : 0.0f;
  }

 private:
  const ForwardPlan& plan_;
  const ForwardScratch& scratch_;
  const ForwardPlace& place_;
};

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
