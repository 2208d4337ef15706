#pragma once

#include <cmath>

#include "flashloom/ops/attention/patterns/tile_runs.h"

namespace flashloom {

/// (base + rest) ln 2 in one rounding, for the logarithm of a sum that is kept as a power of two:
/// where scores are some hundreds, three roundings are errors of 1e-4. Where the base is a sink,
/// the sink as it was given is exact: fma(rest, ln 2, sink).
FLASHLOOM_HOST_DEVICE inline float natural_log(float base, float rest) {
  constexpr float kLn2 = 0.69314718f;
  constexpr float kBehind = -1.9046543e-9f;  // ln 2 less kLn2
  return std::fma(base, kLn2, std::fma(base, kBehind, rest * kLn2));
}

}  // namespace flashloom
