#include <cmath>
#include <limits>

#include "flashloom/ops/linear_cross_entropy/logit_rows.h"

// foreach_target.h compiles this file once a target; it must come before Highway's other headers.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/linear_cross_entropy/logit_rows_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// exp(x) for x <= 0 to 1.5 ulp; 0 below the smallest normal number; NaN stays NaN (Highway's Exp
// returns 0 for it). Cephes' reduction by ln 2 in two parts and its polynomial.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_of_nonpositive(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504088896341f)));
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::MulAdd(hn::Set(d, 1.9875691500e-4f), r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto exponent = hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(exponent));
  const V tiny = hn::Set(d, -87.3365f);  // ln of the smallest normal number
  return hn::IfThenElse(hn::Lt(x, tiny), hn::Zero(d), hn::Mul(p, power));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V cap(D d, V x, V softcap, V inverse) {
  const V scaled = hn::Mul(x, inverse);
  const V capped = hn::Mul(softcap, hn::Tanh(d, scaled));
  return hn::IfThenElse(hn::Eq(x, x), capped, x);  // Highway's Tanh may lose a NaN
}

// Calls body(offset, lanes) over whole vectors, then once for what is left.
template <class D, class Whole, class Rest>
HWY_INLINE void for_each_vector(D d, int64_t count, Whole whole, Rest rest) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    whole(i);
  }
  if (i < count) {
    rest(i, static_cast<size_t>(count - i));
  }
}

// Vectors at the end of a row are read through a buffer filled with `fill`.
template <class D>
HWY_INLINE hn::Vec<D> load_partial(D d, const float* from, size_t count, float fill) {
  HWY_ALIGN float buffer[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(hn::Set(d, fill), d, buffer);
  for (size_t i = 0; i < count; ++i) {
    buffer[i] = from[i];
  }
  return hn::Load(d, buffer);
}

template <class D>
HWY_INLINE void store_partial(D d, hn::Vec<D> value, float* to, size_t count) {
  HWY_ALIGN float buffer[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(value, d, buffer);
  for (size_t i = 0; i < count; ++i) {
    to[i] = buffer[i];
  }
}

void cap_row(float* logits, int64_t count, float softcap) {
  const hn::ScalableTag<float> d;
  const hn::Vec<decltype(d)> limit = hn::Set(d, softcap);
  const hn::Vec<decltype(d)> inverse = hn::Set(d, 1 / softcap);
  for_each_vector(
      d, count,
      [&](int64_t i)
          HWY_ATTR { hn::StoreU(cap(d, hn::LoadU(d, logits + i), limit, inverse), d, logits + i); },
      [&](int64_t i, size_t left) HWY_ATTR {
        const auto x = load_partial(d, logits + i, left, 0);
        store_partial(d, cap(d, x, limit, inverse), logits + i, left);
      });
}

float maximum_of_row(const float* logits, int64_t count) {
  const hn::ScalableTag<float> d;
  auto maximum = hn::Set(d, kLowest);
  for_each_vector(
      d, count, [&](int64_t i) HWY_ATTR { maximum = hn::Max(maximum, hn::LoadU(d, logits + i)); },
      [&](int64_t i, size_t left)
          HWY_ATTR { maximum = hn::Max(maximum, load_partial(d, logits + i, left, kLowest)); });
  return hn::GetLane(hn::MaxOfLanes(d, maximum));
}

LogitStatistics statistics(const float* logits, int64_t count) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  LogitStatistics result;
  result.maximum = maximum_of_row(logits, count);
  const V shift = hn::Set(d, result.maximum == kLowest ? 0.0f : result.maximum);
  V sum = hn::Zero(d);
  V exp_sum = hn::Zero(d);
  for_each_vector(
      d, count,
      [&](int64_t i) HWY_ATTR {
        const V z = hn::LoadU(d, logits + i);
        sum = hn::Add(sum, z);
        exp_sum = hn::Add(exp_sum, exp_of_nonpositive(d, hn::Sub(z, shift)));
      },
      [&](int64_t i, size_t left) HWY_ATTR {
        sum = hn::Add(sum, load_partial(d, logits + i, left, 0));
        const V z = load_partial(d, logits + i, left, kLowest);
        exp_sum = hn::Add(exp_sum, exp_of_nonpositive(d, hn::Sub(z, shift)));
      });
  result.sum = hn::GetLane(hn::SumOfLanes(d, sum));
  result.exp_sum = hn::GetLane(hn::SumOfLanes(d, exp_sum));
  return result;
}

float exponentiate(float* logits, int64_t count, float maximum, float softcap) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const V shift = hn::Set(d, maximum == kLowest ? 0.0f : maximum);
  const V inverse = hn::Set(d, softcap > 0 ? 1 / softcap : 0.0f);
  V sum = hn::Zero(d);
  const auto weigh = [&](V z, V p) HWY_ATTR {
    if (softcap > 0) {
      const V ratio = hn::Mul(z, inverse);
      return hn::Mul(p, hn::NegMulAdd(ratio, ratio, hn::Set(d, 1.0f)));
    }
    return p;
  };
  for_each_vector(
      d, count,
      [&](int64_t i) HWY_ATTR {
        const V z = hn::LoadU(d, logits + i);
        const V p = exp_of_nonpositive(d, hn::Sub(z, shift));
        sum = hn::Add(sum, p);
        hn::StoreU(weigh(z, p), d, logits + i);
      },
      [&](int64_t i, size_t left) HWY_ATTR {
        const V z = load_partial(d, logits + i, left, kLowest);
        const V p = exp_of_nonpositive(d, hn::Sub(z, shift));
        sum = hn::Add(sum, p);
        store_partial(d, weigh(z, p), logits + i, left);
      });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void gradients(float* logits, int64_t count, float maximum, float factor, float constant,
               float softcap) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const V shift = hn::Set(d, maximum);
  const V scale = hn::Set(d, factor);
  const V less = hn::Set(d, constant);
  const V inverse = hn::Set(d, softcap > 0 ? 1 / softcap : 0.0f);  // 0: the slope is 1
  const auto gradient = [&](V z) HWY_ATTR {
    const V p = exp_of_nonpositive(d, hn::Sub(z, shift));
    const V ratio = hn::Mul(z, inverse);
    const V slope = hn::NegMulAdd(ratio, ratio, hn::Set(d, 1.0f));
    return hn::Mul(hn::MulSub(p, scale, less), slope);
  };
  for_each_vector(
      d, count,
      [&](int64_t i) HWY_ATTR { hn::StoreU(gradient(hn::LoadU(d, logits + i)), d, logits + i); },
      [&](int64_t i, size_t left) HWY_ATTR {
        const V z = load_partial(d, logits + i, left, 0);
        store_partial(d, gradient(z), logits + i, left);
      });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(cap_row);
HWY_EXPORT(maximum_of_row);
HWY_EXPORT(statistics);
HWY_EXPORT(exponentiate);
HWY_EXPORT(gradients);

void cap_logits(float* logits, int64_t count, float softcap) {
  HWY_DYNAMIC_DISPATCH(cap_row)(logits, count, softcap);
}

float logit_maximum(const float* logits, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(maximum_of_row)(logits, count);
}

LogitStatistics logit_statistics(const float* logits, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(statistics)(logits, count);
}

float exponentiate_logits(float* logits, int64_t count, float maximum, float softcap) {
  return HWY_DYNAMIC_DISPATCH(exponentiate)(logits, count, maximum, softcap);
}

void logit_gradients(float* logits, int64_t count, float maximum, float factor, float constant,
                     float softcap) {
  HWY_DYNAMIC_DISPATCH(gradients)(logits, count, maximum, factor, constant, softcap);
}

}  // namespace flashloom
#endif  // HWY_ONCE
