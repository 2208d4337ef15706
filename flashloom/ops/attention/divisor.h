#pragma once

#include <cstdint>

#include "flashloom/ops/attention/patterns/tile_runs.h"

namespace flashloom {

/// n / divisor for n in [0, 2^31) as a product: with 2^(s-1) < divisor <= 2^s the multiplier
/// ceil(2^(31+s) / divisor) fits 32 bits, and its error times n stays below one quotient.
struct Divisor {
  uint32_t divisor = 1;
  uint32_t multiplier = 1u << 31;
  uint32_t shift = 31;

  Divisor() = default;

  explicit Divisor(int64_t value) : divisor(static_cast<uint32_t>(value)) {
    while ((int64_t{1} << (shift - 31)) < value) {
      ++shift;
    }
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }

  FLASHLOOM_HOST_DEVICE int32_t quotient(int32_t n) const {
    return static_cast<int32_t>((static_cast<uint64_t>(static_cast<uint32_t>(n)) * multiplier) >>
                                shift);
  }
};

}  // namespace flashloom
