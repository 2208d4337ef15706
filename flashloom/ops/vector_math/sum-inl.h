// Sums over rows of f32 in a fixed order. Included once per target.
#if defined(FLASHLOOM_OPS_VECTOR_MATH_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_VECTOR_MATH_SUM_INL_H_
#undef FLASHLOOM_OPS_VECTOR_MATH_SUM_INL_H_
#else
#define FLASHLOOM_OPS_VECTOR_MATH_SUM_INL_H_
#endif

#include <cstddef>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Four sums hide the latency of the addition; the lanes are added in a fixed order at the end.
/// `term(d, i, sum)` returns sum plus the terms of the lanes at i.
template <class Term>
HWY_INLINE float sum_of(size_t count, Term term) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d);
  auto s1 = hn::Zero(d);
  auto s2 = hn::Zero(d);
  auto s3 = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    s0 = term(d, i, s0);
    s1 = term(d, i + lanes, s1);
    s2 = term(d, i + 2 * lanes, s2);
    s3 = term(d, i + 3 * lanes, s3);
  }
  for (; i + lanes <= count; i += lanes) {
    s0 = term(d, i, s0);
  }
  const hn::CappedTag<float, 1> d1;
  auto rest = hn::Zero(d1);
  for (; i < count; ++i) {
    rest = term(d1, i, rest);
  }
  const auto all = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
  return hn::GetLane(hn::SumOfLanes(d, all)) + hn::GetLane(rest);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
