#include <fmt/format.h>

#include <cmath>
#include <numbers>

#include "flashloom/core/check.h"
#include "flashloom/ops/rope/rope.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "rope_frequencies";

void check_positive(std::string_view argument, double value) {
  check(value > 0 && std::isfinite(value), kOp, argument, "a positive number",
        fmt::format("{}", value));
}

void check_options(const RopeFrequencies& options) {
  check_positive("base", options.base);
  if (options.scaling != RopeFrequencies::Scaling::none) {
    check_positive("factor", options.factor);
  }
  if (options.scaling == RopeFrequencies::Scaling::llama3) {
    check_positive("low_frequency_factor", options.low_frequency_factor);
    check_positive("original_positions", options.original_positions);
    check(options.high_frequency_factor > options.low_frequency_factor, kOp,
          "high_frequency_factor",
          fmt::format("more than low_frequency_factor = {}", options.low_frequency_factor),
          fmt::format("{}", options.high_frequency_factor));
  }
}

// Llama 3.1: wavelengths that fit the original context often are kept, those longer than it are
// stretched, those between are blended.
float llama3_scaled(float frequency, const RopeFrequencies& options) {
  const auto factor = static_cast<float>(options.factor);
  const auto original = static_cast<float>(options.original_positions);
  const auto low = static_cast<float>(options.low_frequency_factor);
  const auto high = static_cast<float>(options.high_frequency_factor);
  const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
  if (wavelength < original / high) {
    return frequency;
  }
  if (wavelength > original / low) {
    return frequency / factor;
  }
  const float smooth = (original / wavelength - low) / (high - low);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

}  // namespace

void rope_frequencies(TensorView frequencies, const RopeFrequencies& options) {
  check_shape(kOp, "frequencies", frequencies, {kAnySize});
  check_dtype(kOp, "frequencies", frequencies, {DType::f32});
  check_contiguous(kOp, "frequencies", frequencies);
  check_cpu(kOp, "frequencies", frequencies);
  check_options(options);
  auto* out = frequencies.as<float>();
  const int64_t half = frequencies.shape[0];
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(2 * half);
    const auto power = static_cast<float>(std::pow(options.base, static_cast<double>(exponent)));
    const float frequency = 1.0f / power;
    switch (options.scaling) {
      case RopeFrequencies::Scaling::none:
        out[i] = frequency;
        break;
      case RopeFrequencies::Scaling::linear:
        out[i] = frequency / static_cast<float>(options.factor);
        break;
      case RopeFrequencies::Scaling::llama3:
        out[i] = llama3_scaled(frequency, options);
        break;
    }
  }
}

}  // namespace flashloom
