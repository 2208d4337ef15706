// Loads and stores of f32 and bf16 memory as vectors of f32. Included once per target.
#if defined(FLASHLOOM_OPS_VECTOR_MATH_STORAGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_VECTOR_MATH_STORAGE_INL_H_
#undef FLASHLOOM_OPS_VECTOR_MATH_STORAGE_INL_H_
#else
#define FLASHLOOM_OPS_VECTOR_MATH_STORAGE_INL_H_
#endif

#include <cstdint>

#include "flashloom/core/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const float* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const bf16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class D>
HWY_INLINE void store_f32(D d, hn::Vec<D> v, float* p) {
  hn::StoreU(v, d, p);
}

/// Rounds to nearest even and keeps NaN, as flashloom::bf16 does (Highway 1.0.3 truncates).
template <class D>
HWY_INLINE void store_f32(D /*d*/, hn::Vec<D> v, bf16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const hn::RebindToSigned<D> di32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(d32, 0x400000u));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  const auto upper = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, upper)), d16, reinterpret_cast<uint16_t*>(p));
}

/// Calls body(d, i) for whole vectors from i = 0 on, then for single lanes: together all of
/// [0, count).
template <class Body>
HWY_INLINE void for_vectors(size_t count, Body body) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    body(d, i);
  }
  for (; i < count; ++i) {
    body(d1, i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
