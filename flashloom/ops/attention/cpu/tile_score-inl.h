// Softcap, ALiBi, bias and dropout of a panel. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_TILE_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_TILE_SCORE_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_TILE_SCORE_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_TILE_SCORE_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "flashloom/ops/attention/attention_dropout.h"
#include "flashloom/ops/attention/cpu/cpu_score.h"
#include "flashloom/ops/attention/cpu/tile_mask-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

/// Where a panel and a range of a tile lie: rows of the caller's sides.
struct PanelPlace {
  int64_t outer_first;
  int64_t outer_count;  // that exist
  int64_t inner_first;  // of the tile
  int64_t inner_count;
};

/// tanh within 3e-7 of its size: a series near 0, where 1 - e^-2x would cancel.
HWY_INLINE Vector tanh_f32(Lanes d, Vector x) {
  const auto magnitude = hn::Abs(x);
  const auto e = exp2_f32(d, hn::Mul(magnitude, hn::Set(d, -2.0f * std::numbers::log2e_v<float>)));
  const auto one = hn::Set(d, 1.0f);
  const auto far = hn::Div(hn::Sub(one, e), hn::Add(one, e));
  // x - x^3/3 + 2 x^5/15 - 17 x^7/315 + 62 x^9/2835; the next term is 2e-8 of x at 0.3.
  const auto square = hn::Mul(x, x);
  auto p = hn::Set(d, 62.0f / 2835);
  p = hn::MulAdd(p, square, hn::Set(d, -17.0f / 315));
  p = hn::MulAdd(p, square, hn::Set(d, 2.0f / 15));
  p = hn::MulAdd(p, square, hn::Set(d, -1.0f / 3));
  p = hn::MulAdd(p, square, one);
  const auto near = hn::Mul(magnitude, p);
  const auto result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.3f)), near, far);
  return hn::CopySign(result, x);
}

template <class T>
inline void add_bias(const CpuHeadScore& head, bool transposed, const PanelRange& range,
                     const PanelPlace& place, float* scores, int64_t stride) {
  const auto* bias = static_cast<const T*>(head.bias.data);
  const int64_t row_stride = head.bias.dim(0) == 1 ? 0 : head.bias.stride(0);
  const int64_t last = std::min(range.last, place.inner_count);
  for (int64_t i = range.first; i < last; ++i) {
    for (int64_t lane = 0; lane < place.outer_count; ++lane) {
      const int64_t outer = place.outer_first + lane;
      const int64_t inner = place.inner_first + i;
      const int64_t at = transposed ? inner * row_stride + outer : outer * row_stride + inner;
      scores[i * stride + lane] += static_cast<float>(bias[at]) * std::numbers::log2e_v<float>;
    }
  }
}

/// Raw products to final scores in base 2. `slopes`, if wanted, takes d(score) / d(scaled product).
template <int NV>
void adjust_scores(const CpuScore& score, const CpuHeadScore& head, const HeadGeometry& geometry,
                   const PanelRange& range, const PanelPlace& place, float* scores, float* slopes) {
  const Lanes d;
  constexpr int kWidth = NV * kLanes;
  if (score.softcap > 0) {
    const auto cap = hn::Set(d, score.softcap);
    for (int64_t i = range.first * kWidth; i < range.last * kWidth; i += kLanes) {
      const auto t = tanh_f32(d, hn::Load(d, scores + i));
      hn::Store(hn::Mul(cap, t), d, scores + i);
      if (slopes != nullptr) {
        hn::Store(hn::NegMulAdd(t, t, hn::Set(d, 1.0f)), d, slopes + i);
      }
    }
  }
  if (head.alibi_slope != 0) {
    for (int64_t i = range.first; i < std::min(range.last, place.inner_count); ++i) {
      const int64_t position = geometry.inner.position(place.inner_first + i);
      for (int64_t lane = 0; lane < place.outer_count; ++lane) {
        const int64_t distance = position - geometry.outer.position(place.outer_first + lane);
        scores[i * kWidth + lane] -=
            head.alibi_slope * static_cast<float>(distance < 0 ? -distance : distance);
      }
    }
  }
  if (head.bias) {
    if (head.bias.dtype == DType::f32) {
      add_bias<float>(head, geometry.transposed, range, place, scores, kWidth);
    } else if (head.bias.dtype == DType::bf16) {
      add_bias<bf16>(head, geometry.transposed, range, place, scores, kWidth);
    } else {
      add_bias<f16>(head, geometry.transposed, range, place, scores, kWidth);
    }
  }
}

/// factors[i][lane] = 0 or 1 / (1 - probability).
template <int NV>
void dropout_factors(const CpuScore& score, const CpuHeadScore& head, const HeadGeometry& geometry,
                     const PanelRange& range, const PanelPlace& place, float* factors) {
  constexpr int kWidth = NV * kLanes;
  const uint64_t threshold = attention_dropout_threshold(score.dropout);
  const float kept = 1 / (1 - score.dropout);
  std::fill(factors + range.first * kWidth, factors + range.last * kWidth, 0.0f);
  const int64_t rows = std::min(range.last, place.inner_count) - range.first;
  const int64_t lanes = place.outer_count;
  // Keys run fastest, so that one block of random bits serves its four keys.
  const int64_t queries = geometry.transposed ? rows : lanes;
  const int64_t keys = geometry.transposed ? lanes : rows;
  for (int64_t q = 0; q < queries; ++q) {
    std::array<uint32_t, 4> bits = {};
    uint32_t block = 0;
    bool drawn = false;
    for (int64_t k = 0; k < keys; ++k) {
      const int64_t i = range.first + (geometry.transposed ? q : k);
      const int64_t lane = geometry.transposed ? k : q;
      const auto inner = static_cast<uint32_t>(geometry.inner.position(place.inner_first + i));
      const auto outer = static_cast<uint32_t>(geometry.outer.position(place.outer_first + lane));
      const uint32_t key = geometry.transposed ? outer : inner;
      const uint32_t query = geometry.transposed ? inner : outer;
      if (!drawn || key >> 2 != block) {
        block = key >> 2;
        drawn = true;
        bits = attention_dropout_block(score.seed, score.offset, head.sequence, head.head, query,
                                       block);
      }
      factors[i * kWidth + lane] = bits[key & 3] < threshold ? 0.0f : kept;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
