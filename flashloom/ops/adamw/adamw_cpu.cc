#include "flashloom/ops/adamw/adamw_cpu.h"

#include <algorithm>
#include <cmath>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/adamw/adamw_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

#ifndef FLASHLOOM_OPS_ADAMW_ADAMW_CPU_FACTORS_
#define FLASHLOOM_OPS_ADAMW_ADAMW_CPU_FACTORS_

namespace flashloom::detail {

// The options as PyTorch rounds them: each scalar is formed in float64, then rounded to f32.
struct AdamwFactors {
  float gradient_scale;
  float decay;         // 1 - lr wd
  float m_weight;      // 1 - beta1
  float v_decay;       // beta2
  float v_weight;      // 1 - beta2
  float v_correction;  // sqrt(1 - beta2^step)
  float epsilon;
  float step_size;  // -lr / (1 - beta1^step)
};

}  // namespace flashloom::detail
#endif

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

void adamw_tile(float* parameter, float* m, float* v, const float* gradient, size_t count,
                const detail::AdamwFactors& f) {
  // torch.lerp starts from the nearer end.
  const bool near_m = f.m_weight < 0.5f;
  const float m_weight = near_m ? f.m_weight : f.m_weight - 1.0f;
  for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
    const auto g = hn::Mul(hn::LoadU(d, gradient + i), hn::Set(d, f.gradient_scale));
    const auto p = hn::Mul(hn::LoadU(d, parameter + i), hn::Set(d, f.decay));
    const auto old_m = hn::LoadU(d, m + i);
    const auto new_m = hn::MulAdd(hn::Set(d, m_weight), hn::Sub(g, old_m), near_m ? old_m : g);
    const auto old_v = hn::Mul(hn::LoadU(d, v + i), hn::Set(d, f.v_decay));
    const auto new_v = hn::MulAdd(hn::Mul(hn::Set(d, f.v_weight), g), g, old_v);
    const auto root = hn::Div(hn::Sqrt(new_v), hn::Set(d, f.v_correction));
    const auto denominator = hn::Add(root, hn::Set(d, f.epsilon));
    const auto update = hn::Div(hn::Mul(hn::Set(d, f.step_size), new_m), denominator);
    hn::StoreU(new_m, d, m + i);
    hn::StoreU(new_v, d, v + i);
    hn::StoreU(hn::Add(p, update), d, parameter + i);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(adamw_tile);

namespace detail {
namespace {

// Elements of a tile: some 10 µs of work, against 2 µs to hand it out.
constexpr int64_t kTile = 16384;

}  // namespace

void adamw_cpu(float* parameter, float* m, float* v, const float* gradient, int64_t count,
               const AdamwOptions& options) {
  const auto step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(options.beta1, step);
  const double correction2 = 1 - std::pow(options.beta2, step);
  const AdamwFactors factors = {
      .gradient_scale = static_cast<float>(options.gradient_scale),
      .decay = static_cast<float>(1 - options.learning_rate * options.weight_decay),
      .m_weight = static_cast<float>(1 - options.beta1),
      .v_decay = static_cast<float>(options.beta2),
      .v_weight = static_cast<float>(1 - options.beta2),
      .v_correction = static_cast<float>(std::sqrt(correction2)),
      .epsilon = static_cast<float>(options.epsilon),
      .step_size = static_cast<float>(-options.learning_rate / correction1),
  };
  parallel_for(tile_count(count, kTile), [&](int64_t tile) {
    const int64_t first = tile * kTile;
    HWY_DYNAMIC_DISPATCH(adamw_tile)
    (parameter + first, m + first, v + first, gradient + first,
     static_cast<size_t>(std::min(kTile, count - first)), factors);
  });
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
