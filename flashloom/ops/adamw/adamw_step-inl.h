// One vector of AdamW, for kernels that differ in how they store m, v and the parameter. Included
// once per target.
#if defined(FLASHLOOM_OPS_ADAMW_ADAMW_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ADAMW_ADAMW_STEP_INL_H_
#undef FLASHLOOM_OPS_ADAMW_ADAMW_STEP_INL_H_
#else
#define FLASHLOOM_OPS_ADAMW_ADAMW_STEP_INL_H_
#endif

#include "flashloom/ops/adamw/adamw_cpu.h"
#include "flashloom/ops/vector_math/stochastic_rounding-inl.h"
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

/// Returns the new parameter; replaces m and v.
template <class D>
HWY_INLINE hn::Vec<D> adamw_step(D d, hn::Vec<D> parameter, hn::Vec<D>& m, hn::Vec<D>& v,
                                 hn::Vec<D> gradient, const detail::AdamwFactors& f) {
  // torch.lerp starts from the nearer end.
  const bool near_m = f.m_weight < 0.5f;
  const float m_weight = near_m ? f.m_weight : f.m_weight - 1.0f;
  const auto g = hn::Mul(gradient, hn::Set(d, f.gradient_scale));
  const auto p = hn::Mul(parameter, hn::Set(d, f.decay));
  m = hn::MulAdd(hn::Set(d, m_weight), hn::Sub(g, m), near_m ? m : g);
  v = hn::MulAdd(hn::Mul(hn::Set(d, f.v_weight), g), g, hn::Mul(v, hn::Set(d, f.v_decay)));
  const auto root = hn::Div(hn::Sqrt(v), hn::Set(d, f.v_correction));
  const auto denominator = hn::Add(root, hn::Set(d, f.epsilon));
  return hn::Add(p, hn::Div(hn::Mul(hn::Set(d, f.step_size), m), denominator));
}

/// Stores element i of a stretch; `bits` (null: to nearest) are those of the stretch.
template <class D>
HWY_INLINE void store_parameter(D d, hn::Vec<D> value, const uint16_t* /*bits*/, float* p,
                                size_t i) {
  hn::StoreU(value, d, p + i);
}

template <class D>
HWY_INLINE void store_parameter(D d, hn::Vec<D> value, const uint16_t* bits, bf16* p, size_t i) {
  if (bits != nullptr) {
    store_stochastic(d, value, bits + i, p + i);
  } else {
    store_f32(d, value, p + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
