// fp16 numbers as float vectors. No include guard: Highway includes it once a target.

#if defined(FLASHLOOM_SYSTOLIC_ARRAY_HALF_NUMBERS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_SYSTOLIC_ARRAY_HALF_NUMBERS_INL_H_
#undef FLASHLOOM_SYSTOLIC_ARRAY_HALF_NUMBERS_INL_H_
#else
#define FLASHLOOM_SYSTOLIC_ARRAY_HALF_NUMBERS_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom::systolic {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D>
using Bits = hn::RebindToUnsigned<D>;

/// The positive NaN for any NaN.
template <class D, class V>
HWY_INLINE V canonical(D d, V v) {
  return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, hn::Set(Bits<D>(), 0x7FC00000u)), v);
}

/// To the nearest fp16, even at halves; zero of the sign below 2^-14 after that, infinity above the
/// largest. `v` is exact or rounded to odd, so this is the one rounding.
template <class D, class V>
HWY_INLINE V round_half(D d, V v) {
  const Bits<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(du, 1u));
  const auto up = hn::Add(hn::Add(bits, hn::Set(du, 0xFFFu)), odd);
  V rounded = hn::BitCast(d, hn::And(up, hn::Set(du, 0xFFFFE000u)));
  const auto sign = hn::And(bits, hn::Set(du, 0x80000000u));
  const V magnitude = hn::Abs(rounded);
  const V infinity = hn::BitCast(d, hn::Or(sign, hn::Set(du, 0x7F800000u)));
  rounded = hn::IfThenElse(hn::Ge(magnitude, hn::Set(d, 65536.0f)), infinity, rounded);
  rounded = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x1p-14f)), hn::BitCast(d, sign), rounded);
  return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, hn::Set(du, 0x7FC00000u)), rounded);
}

/// a + b rounded to odd: truncated, the last bit set if anything was lost. Rounding that to fewer
/// bits is one rounding of the exact sum.
template <class D, class V>
HWY_INLINE V add_to_odd(D d, V a, V b) {
  const Bits<D> du;
  const V sum = hn::Add(a, b);
  const V b_part = hn::Sub(sum, a);
  const V lost = hn::Add(hn::Sub(a, hn::Sub(sum, b_part)), hn::Sub(b, b_part));
  const auto sum_bits = hn::BitCast(du, sum);
  const auto away = hn::ShiftRight<31>(hn::Xor(hn::BitCast(du, lost), sum_bits));
  const auto truncated = hn::Or(hn::Sub(sum_bits, away), hn::Set(du, 1u));
  // Neither less nor greater: exact, or an infinity's NaN.
  const V zero = hn::Zero(d);
  const auto inexact = hn::Or(hn::Lt(lost, zero), hn::Gt(lost, zero));
  return hn::IfThenElse(inexact, hn::BitCast(d, truncated), sum);
}

/// Where a - b has its sign bit set and is a number: the comparators' choice of b.
template <class D, class V>
HWY_INLINE hn::Mask<D> takes_second(D d, V difference) {
  const hn::RebindToSigned<D> di;
  const auto negative = hn::RebindMask(d, hn::Lt(hn::BitCast(di, difference), hn::Zero(di)));
  return hn::And(negative, hn::Not(hn::IsNaN(difference)));
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom::systolic

HWY_AFTER_NAMESPACE();

#endif
