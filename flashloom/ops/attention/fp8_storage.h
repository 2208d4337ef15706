#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "flashloom/ops/attention/patterns/tile_runs.h"

namespace flashloom {

/// e4m3 (OCP 8-bit float): bias 7, no infinity, one NaN a sign, largest value 448.
FLASHLOOM_HOST_DEVICE inline float e4m3_to_float(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if (exponent == 15 && mantissa == 7) {
    value = std::numeric_limits<float>::quiet_NaN();
  }
  return (bits & 0x80) != 0 ? -value : value;
}

/// Rounds to nearest even and saturates at 448; NaN stays NaN.
FLASHLOOM_HOST_DEVICE inline uint8_t e4m3_from_float(float value) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) {
    return sign | 0x7f;
  }
  if (magnitude >= 448.0f) {
    return sign | 0x7e;
  }
  if (magnitude == 0) {  // its exponent says nothing
    return sign;
  }
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int step = exponent - 4 < -9 ? -9 : exponent - 4;  // log2 of the distance of neighbours
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -step)));
  // `units` in [8, 16] with that step, below 8 only for subnormals; 16 carries into the exponent.
  return static_cast<uint8_t>(sign | (step == -9 ? units : ((step + 9) << 3) + units));
}

}  // namespace flashloom
