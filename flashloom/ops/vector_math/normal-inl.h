// The standard normal distribution for vectors of f32. Included once per target.
#if defined(FLASHLOOM_OPS_VECTOR_MATH_NORMAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_VECTOR_MATH_NORMAL_INL_H_
#undef FLASHLOOM_OPS_VECTOR_MATH_NORMAL_INL_H_
#else
#define FLASHLOOM_OPS_VECTOR_MATH_NORMAL_INL_H_
#endif

#include "flashloom/ops/vector_math/exp-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Phi(x) = (1 + erf(x / sqrt 2)) / 2, and its slope.
template <class V>
struct Normal {
  V cumulative;
  V density;
};

/// Both from one exponential; NaN for NaN. Relative error below (20 + x^2 / 2) 2^-24, in the lower
/// tail too, since nothing is subtracted there.
///
/// With a = |x|, Phi(-a) = e^(-a^2 / 2) q(a), q(a) = erfcx(a / sqrt 2) / 2, which falls slowly from
/// 1/2: here a polynomial of degree 9 in s = (a - 3) / (a + 3), fitted to the least relative error
/// over [0, 14.5], 9.5e-9; beyond, the exponential is 0 in f32.
template <class D>
HWY_INLINE Normal<hn::Vec<D>> normal_f32(D d, hn::Vec<D> x) {
  const auto squared = hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5f));
  const auto e = exp_f32(d, squared);
  const auto a = hn::Min(hn::Abs(x), hn::Set(d, 14.5f));
  const auto three = hn::Set(d, 3.0f);
  const auto s = hn::Div(hn::Sub(a, three), hn::Add(a, three));
  auto q = hn::Set(d, 5.31721162e-05f);
  q = hn::MulAdd(q, s, hn::Set(d, 1.15024952e-04f));
  q = hn::MulAdd(q, s, hn::Set(d, -3.39023245e-04f));
  q = hn::MulAdd(q, s, hn::Set(d, -9.83298756e-04f));
  q = hn::MulAdd(q, s, hn::Set(d, 2.90439161e-03f));
  q = hn::MulAdd(q, s, hn::Set(d, 6.13194518e-03f));
  q = hn::MulAdd(q, s, hn::Set(d, -4.62132655e-02f));
  q = hn::MulAdd(q, s, hn::Set(d, 0.123225041f));
  q = hn::MulAdd(q, s, hn::Set(d, -0.206402615f));
  q = hn::MulAdd(q, s, hn::Set(d, 0.121513948f));
  const auto tail = hn::Mul(e, q);
  const auto rest = hn::Sub(hn::Set(d, 1.0f), tail);
  const auto negative = hn::Lt(x, hn::Zero(d));
  return {hn::IfThenElse(negative, tail, rest), hn::Mul(e, hn::Set(d, 0.398942280f))};
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
