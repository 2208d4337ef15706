#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "flashloom/core/dtype.h"
#include "flashloom/core/philox.h"

namespace flashloom {

/// Rounding f32 to bf16 up or down at random, up with the probability of the part that is cut off:
/// the mean is the number itself, so that updates far below an ulp add up. Sixteen random bits an
/// element are a function of (seed; step, index), so neither threads nor a resumed run matter.

/// Philox's counter for the elements 8 `block` … + 7 of an update.
constexpr std::array<uint32_t, 4> rounding_block(uint64_t seed, uint64_t step, uint64_t block) {
  return philox(seed, block, step << 8 | static_cast<uint64_t>(RandomStream::stochastic_rounding));
}

constexpr uint16_t rounding_bits(uint64_t seed, uint64_t step, uint64_t index) {
  const uint32_t word = rounding_block(seed, step, index / 8)[index % 8 / 2];
  return static_cast<uint16_t>(word >> (index % 2 * 16));
}

/// Adds the bits below the ones that bf16 keeps, and cuts. NaN stays NaN, and no finite number
/// becomes infinite.
constexpr bf16 round_stochastically(float value, uint16_t bits) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  const auto pattern = std::bit_cast<uint32_t>(value);
  const uint32_t sum = pattern + bits;
  if ((pattern & 0x7fffffffu) > kInfinity) {
    return bf16(value);
  }
  const bool finite = (sum & kInfinity) != kInfinity;
  return bf16::from_bits(static_cast<uint16_t>((finite ? sum : pattern) >> 16));
}

}  // namespace flashloom
