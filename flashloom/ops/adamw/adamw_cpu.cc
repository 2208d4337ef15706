#include "flashloom/ops/adamw/adamw_cpu.h"

#include <algorithm>
#include <cmath>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/adamw/adamw_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/adamw/adamw_step-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

// Elements whose random bits are made at once: they stay in the nearest cache.
constexpr size_t kStretch = 1024;

template <class T>
void stretch(T* parameter, float* m, float* v, const float* gradient, size_t count,
             const uint16_t* bits, const detail::AdamwFactors& f) {
  for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
    auto new_m = hn::LoadU(d, m + i);
    auto new_v = hn::LoadU(d, v + i);
    const auto p =
        adamw_step(d, load_f32(d, parameter + i), new_m, new_v, hn::LoadU(d, gradient + i), f);
    hn::StoreU(new_m, d, m + i);
    hn::StoreU(new_v, d, v + i);
    store_parameter(d, p, bits, parameter, i);
  });
}

void tile_f32(float* parameter, float* m, float* v, const float* gradient, size_t count,
              const detail::AdamwFactors& f) {
  stretch(parameter, m, v, gradient, count, nullptr, f);
}

void tile_bf16(bf16* parameter, float* m, float* v, const float* gradient, size_t count,
               uint64_t position, const AdamwOptions& options, const detail::AdamwFactors& f) {
  const bool stochastic = options.rounding == AdamwRounding::stochastic;
  uint16_t buffer[kStretch + kRoundingBitsSlack];
  for (size_t i = 0; i < count; i += kStretch) {
    const size_t size = std::min(kStretch, count - i);
    const uint16_t* bits = stochastic
                               ? rounding_bits_of(options.seed, static_cast<uint64_t>(options.step),
                                                  position + i, size, buffer)
                               : nullptr;
    stretch(parameter + i, m + i, v + i, gradient + i, size, bits, f);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(tile_f32);
HWY_EXPORT(tile_bf16);

namespace detail {
namespace {

// Elements of a tile: some 10 µs of work, against 2 µs to hand it out.
constexpr int64_t kTile = 16384;

}  // namespace

AdamwFactors adamw_factors(const AdamwOptions& options) {
  const auto step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(options.beta1, step);
  const double correction2 = 1 - std::pow(options.beta2, step);
  return {
      .gradient_scale = static_cast<float>(options.gradient_scale),
      .decay = static_cast<float>(1 - options.learning_rate * options.weight_decay),
      .m_weight = static_cast<float>(1 - options.beta1),
      .v_decay = static_cast<float>(options.beta2),
      .v_weight = static_cast<float>(1 - options.beta2),
      .v_correction = static_cast<float>(std::sqrt(correction2)),
      .epsilon = static_cast<float>(options.epsilon),
      .step_size = static_cast<float>(-options.learning_rate / correction1),
  };
}

void adamw_cpu(const TensorView& parameter, float* m, float* v, const float* gradient,
               const AdamwOptions& options) {
  const AdamwFactors factors = adamw_factors(options);
  const int64_t count = parameter.size();
  parallel_for(tile_count(count, kTile), [&](int64_t tile) {
    const int64_t first = tile * kTile;
    const auto size = static_cast<size_t>(std::min(kTile, count - first));
    if (parameter.dtype == DType::bf16) {
      HWY_DYNAMIC_DISPATCH(tile_bf16)
      (parameter.as<bf16>() + first, m + first, v + first, gradient + first, size,
       static_cast<uint64_t>(options.position + first), options, factors);
    } else {
      HWY_DYNAMIC_DISPATCH(tile_f32)
      (parameter.as<float>() + first, m + first, v + first, gradient + first, size, factors);
    }
  });
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
