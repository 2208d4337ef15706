// Sine and cosine for vectors of f64, to f32 accuracy. Included once per target.
#if defined(FLASHLOOM_OPS_VECTOR_MATH_SINCOS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_VECTOR_MATH_SINCOS_INL_H_
#undef FLASHLOOM_OPS_VECTOR_MATH_SINCOS_INL_H_
#else
#define FLASHLOOM_OPS_VECTOR_MATH_SINCOS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class V>
struct SineCosine {
  V sine;
  V cosine;
};

/// Absolute error below 1e-9 for |x| < 2^31; NaN for NaN and infinity.
///
/// x = k pi/2 + r, |r| <= pi/4, with pi/2 in three parts: the first two have 22 significant bits,
/// so that their products with k < 2^31 are exact also without fused multiply-add. Taylor series
/// through r^11 and r^12: the remainders (pi/4)^13 / 13! and (pi/4)^14 / 14! are 7e-12 and 4e-13.
template <class D>
HWY_INLINE SineCosine<hn::Vec<D>> sincos_f64(D d, hn::Vec<D> x) {
  const hn::RebindToUnsigned<D> du;
  // 1.5 * 2^52: adding it rounds to an integer whose low bits are the low bits of the sum.
  const auto magic = hn::Set(d, 6755399441055744.0);
  const auto shifted = hn::Add(hn::Mul(x, hn::Set(d, 0.63661977236758134308)), magic);
  const auto quadrant = hn::BitCast(du, shifted);
  const auto k = hn::Sub(shifted, magic);
  auto r = hn::NegMulAdd(k, hn::Set(d, 0x1.921fbp+0), x);
  r = hn::NegMulAdd(k, hn::Set(d, 0x1.5110bp-22), r);
  r = hn::NegMulAdd(k, hn::Set(d, 0x1.18469898cc517p-44), r);
  const auto z = hn::Mul(r, r);

  auto s = hn::Set(d, -1.0 / 39916800);
  s = hn::MulAdd(s, z, hn::Set(d, 1.0 / 362880));
  s = hn::MulAdd(s, z, hn::Set(d, -1.0 / 5040));
  s = hn::MulAdd(s, z, hn::Set(d, 1.0 / 120));
  s = hn::MulAdd(s, z, hn::Set(d, -1.0 / 6));
  s = hn::MulAdd(hn::Mul(s, z), r, r);

  auto c = hn::Set(d, 1.0 / 479001600);
  c = hn::MulAdd(c, z, hn::Set(d, -1.0 / 3628800));
  c = hn::MulAdd(c, z, hn::Set(d, 1.0 / 40320));
  c = hn::MulAdd(c, z, hn::Set(d, -1.0 / 720));
  c = hn::MulAdd(c, z, hn::Set(d, 1.0 / 24));
  c = hn::MulAdd(c, z, hn::Set(d, -0.5));
  c = hn::MulAdd(c, z, hn::Set(d, 1.0));

  // Quadrants 1 and 3 swap the two; sine is negative in 2 and 3, cosine in 1 and 2.
  const auto one = hn::Set(du, uint64_t{1});
  const auto swap = hn::MaskFromVec(hn::BitCast(d, hn::Sub(hn::Zero(du), hn::And(quadrant, one))));
  const auto sine_sign = hn::BitCast(d, hn::ShiftLeft<62>(hn::AndNot(one, quadrant)));
  const auto cosine_sign =
      hn::BitCast(d, hn::ShiftLeft<62>(hn::AndNot(one, hn::Add(quadrant, one))));
  return {hn::Xor(hn::IfThenElse(swap, c, s), sine_sign),
          hn::Xor(hn::IfThenElse(swap, s, c), cosine_sign)};
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
