// The backward pass between its products: probabilities, and the gradient of scores. Included once
// per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_SCORES_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_SCORES_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_SCORES_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <numbers>

#include "flashloom/ops/attention/cpu/attention_backward_plan.h"
#include "flashloom/ops/attention/cpu/tile_mask-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/attention/cpu/tile_score-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

template <int NV>
struct BackwardScores {
  static constexpr int kWidth = NV * kLanes;

  const BackwardPlan& plan;
  const BackwardScratch& scratch;
  int64_t score_width;  // of a row of dS

  void softmax(const PanelRange& range) const {
    const Lanes d;
    const auto unit = hn::Set(d, plan.score.unit_natural);
    const auto base2 = hn::Set(d, std::numbers::log2e_v<float>);
    for (int64_t i = range.first; i < range.last; ++i) {
      float* row = scratch.probabilities + i * kWidth;
      const auto log_sum = hn::Set(d, scratch.log_sums[i]);
      for (int c = 0; c < kWidth; c += kLanes) {
        const auto x = hn::Mul(hn::MulSub(hn::Load(d, row + c), unit, log_sum), base2);
        if (plan.with_entropy) {
          hn::Store(x, d, scratch.centred + i * kWidth + c);
        }
        hn::Store(exp2_f32(d, x), d, row + c);
      }
    }
  }

  static void multiply(const PanelRange& range, float* values, int64_t stride,
                       const float* factors) {
    const Lanes d;
    for (int64_t i = range.first; i < range.last; ++i) {
      for (int c = 0; c < kWidth; c += kLanes) {
        float* at = values + i * stride + c;
        hn::Store(hn::Mul(hn::Load(d, at), hn::Load(d, factors + i * kWidth + c)), d, at);
      }
    }
  }

  // dS = Z o P o dP - P o D', with Z o P the probabilities after dropout.
  void backpropagate_softmax(const PanelRange& range, const float* dropped, float* dscores) const {
    const Lanes d;
    const bool drop = dropped != scratch.probabilities;
    for (int64_t i = range.first; i < range.last; ++i) {
      const float* p = scratch.probabilities + i * kWidth;
      float* ds = dscores + i * score_width;
      const auto delta = hn::Set(d, scratch.deltas[i]);
      for (int c = 0; c < kWidth; c += kLanes) {
        const auto dp = hn::Load(d, ds + c);
        const auto weight = hn::Load(d, p + c);
        hn::Store(
            drop ? hn::NegMulAdd(weight, delta, hn::Mul(hn::Load(d, dropped + i * kWidth + c), dp))
                 : hn::Mul(weight, hn::Sub(dp, delta)),
            d, ds + c);
      }
    }
  }

  // Shannon: dS -= dentropy P (log P + H); Renyi of order a, with R = P^a / sum P^a:
  // dS += dentropy a / (1 - a) (R - P). Centred, so that nothing cancels.
  void backpropagate_entropy(const PanelRange& range, float* dscores) const {
    const Lanes d;
    const float order = plan.saved->entropy_order;
    const auto zero = hn::Zero(d);
    for (int64_t i = range.first; i < range.last; ++i) {
      const float gradient = scratch.dentropies[i];
      const auto h = hn::Set(d, scratch.entropies[i]);
      const auto share =
          hn::Set(d, (order - 1) * scratch.entropies[i] * std::numbers::log2e_v<float>);
      const auto factor = hn::Set(d, order == 1 ? -gradient : gradient * order / (1 - order));
      for (int c = 0; c < kWidth; c += kLanes) {
        const auto p = hn::Load(d, scratch.probabilities + i * kWidth + c);
        const auto x = hn::Load(d, scratch.centred + i * kWidth + c);
        const auto change =
            order == 1 ? hn::Mul(p, hn::MulAdd(x, hn::Set(d, std::numbers::ln2_v<float>), h))
                       : hn::Sub(exp2_f32(d, hn::MulAdd(hn::Set(d, order), x, share)), p);
        float* ds = dscores + i * score_width + c;
        const auto visible = hn::IfThenElseZero(hn::Gt(p, zero), change);
        hn::Store(hn::MulAdd(factor, visible, hn::Load(d, ds)), d, ds);
      }
    }
  }

  void add_bias_gradient(int32_t sequence, const CpuHeadScore& head_score, const PanelRange& range,
                         const PanelPlace& place, const float* dscores) const {
    const TensorView& all = plan.gradients->dbias;
    TensorView dbias = all.select(0, all.dim(0) == 1 ? 0 : sequence);
    dbias = dbias.select(0, dbias.dim(0) == 1 ? 0 : head_score.head);
    const int64_t row_stride = dbias.dim(0) == 1 ? 0 : dbias.stride(0);
    for (int64_t i = range.first; i < std::min(range.last, place.inner_count); ++i) {
      float* row = dbias.as<float>() + (place.inner_first + i) * row_stride + place.outer_first;
      for (int64_t lane = 0; lane < place.outer_count; ++lane) {
        row[lane] += dscores[i * score_width + lane];
      }
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
