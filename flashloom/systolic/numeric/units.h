#pragma once

#include <cstdint>

#include "flashloom/systolic/numeric/soft_float.h"

namespace flashloom::systolic {

/// The larger of two as a comparator finds it: by the sign of a - b. Equal numbers, and a
/// difference that is not a number, give a.
struct Compared {
  uint32_t difference;  // a - b
  uint32_t larger;
};

constexpr Compared compare(FloatFormat format, uint32_t a, uint32_t b) {
  const uint32_t difference = subtract(format, a, b);
  return {.difference = difference, .larger = (difference & format.sign_bit()) != 0 ? b : a};
}

/// 1 / x, correctly rounded, as a divider finds it: quotient bits from the top, the remainder as
/// sticky bit. 1/±0 is ±inf, 1/±inf is ±0; subnormal operands and results are zeros.
constexpr uint32_t reciprocal(FloatFormat format, uint32_t x) {
  const Exact divisor = unpack(format, x);
  Exact quotient{.kind = divisor.kind, .sign = divisor.sign};
  if (divisor.kind == NumberKind::zero) {
    quotient.kind = NumberKind::infinity;
  } else if (divisor.kind == NumberKind::infinity) {
    quotient.kind = NumberKind::zero;
  } else if (divisor.kind == NumberKind::finite) {
    // The divisor lies in [1, 2) · 2^fraction_bits: two bits more than the precision, and sticky.
    const int scale = 2 * format.fraction_bits + 3;
    const uint64_t dividend = uint64_t{1} << scale;
    const auto significand = static_cast<uint64_t>(divisor.significand);
    quotient.significand =
        (Wide{dividend / significand} << 1) | (dividend % significand != 0 ? 1 : 0);
    quotient.exponent = -divisor.exponent - scale - 1;
  }
  return round_to(format, quotient);
}

}  // namespace flashloom::systolic
