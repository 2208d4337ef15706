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

LogitStatistics statistics(float* logits, int64_t count, float softcap) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  V maximum = hn::Set(d, kLowest);
  V sum = hn::Zero(d);
  if (softcap > 0) {
    const V limit = hn::Set(d, softcap);
    const V inverse = hn::Set(d, 1 / softcap);
    for_each_vector(
        d, count,
        [&](int64_t i) HWY_ATTR {
          hn::StoreU(cap(d, hn::LoadU(d, logits + i), limit, inverse), d, logits + i);
        },
        [&](int64_t i, size_t left) HWY_ATTR {
          const V x = load_partial(d, logits + i, left, 0);
          store_partial(d, cap(d, x, limit, inverse), logits + i, left);
        });
  }
  for_each_vector(
      d, count,
      [&](int64_t i) HWY_ATTR {
        const V x = hn::LoadU(d, logits + i);
        maximum = hn::Max(maximum, x);
        sum = hn::Add(sum, x);
      },
      [&](int64_t i, size_t left) HWY_ATTR {
        maximum = hn::Max(maximum, load_partial(d, logits + i, left, kLowest));
        sum = hn::Add(sum, load_partial(d, logits + i, left, 0));
      });
  LogitStatistics result;
  result.maximum = hn::GetLane(hn::MaxOfLanes(d, maximum));
  result.sum = hn::GetLane(hn::SumOfLanes(d, sum));
  const V shift = hn::Set(d, result.maximum == kLowest ? 0.0f : result.maximum);
  V exp_sum = hn::Zero(d);
  for_each_vector(
      d, count,
      [&](int64_t i) HWY_ATTR {
        const V x = hn::Sub(hn::LoadU(d, logits + i), shift);
        exp_sum = hn::Add(exp_sum, exp_of_nonpositive(d, x));
      },
      [&](int64_t i, size_t left) HWY_ATTR {
        const V x = hn::Sub(load_partial(d, logits + i, left, kLowest), shift);
        exp_sum = hn::Add(exp_sum, exp_of_nonpositive(d, x));
      });
  result.exp_sum = hn::GetLane(hn::SumOfLanes(d, exp_sum));
  return result;
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

HWY_EXPORT(statistics);
HWY_EXPORT(gradients);

LogitStatistics logit_statistics(float* logits, int64_t count, float softcap) {
  return HWY_DYNAMIC_DISPATCH(statistics)(logits, count, softcap);
}

void logit_gradients(float* logits, int64_t count, float maximum, float factor, float constant,
                     float softcap) {
  HWY_DYNAMIC_DISPATCH(gradients)(logits, count, maximum, factor, constant, softcap);
}

}  // namespace flashloom
#endif  // HWY_ONCE
