#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/systolic/numeric/soft_float.h"

namespace flashloom::systolic {

/// 2^x by chords: x = i + f with i its integer part towards zero, |f| < 1 and the sign of x; then
/// 2^i (slope[n] f + intercept[n]) with n = floor(|f| pieces), rounded once. The chords are those
/// of 2^f on [-1, 0] in `pieces` equal pieces; piece 0 touches zero. Positive x (a score rounded
/// above its row's maximum) is extrapolated by the piece of |f|: the rule of the published hardware
/// for small x, and by the same formula for large ones.

/// A number cut for exp2.
struct Exp2Split {
  int integer = 0;
  Exact fraction;  // exact in the format of x
  int piece = 0;   // of numbers that are not finite or out of range: 0, so that they too are hit
  bool vanishes =
      false;  // |x| >= 2^exponent_bits (32 for fp16, 256 for bf16 and fp32), or infinite
};

/// `pieces` is a power of two.
constexpr Exp2Split split_exp2(FloatFormat format, uint32_t x, int pieces) {
  Exp2Split split;
  const Exact number = unpack(format, x);
  split.fraction = number;
  if (number.kind == NumberKind::infinity) {
    split.vanishes = true;
  } else if (number.kind == NumberKind::finite) {
    const int leading = number.exponent + format.fraction_bits;
    if (leading >= format.exponent_bits) {
      split.vanishes = true;
      return split;
    }
    if (leading >= 0) {
      const int below = -number.exponent;  // bits behind the binary point; exponent_bits is less
      const auto significand = static_cast<uint32_t>(number.significand);
      const int magnitude =
          static_cast<int>(below > 0 ? significand >> below : significand << -below);
      split.integer = number.sign ? -magnitude : magnitude;
      split.fraction.significand = below > 0 ? significand & ((uint32_t{1} << below) - 1) : 0;
      if (split.fraction.significand == 0) {
        split.fraction.kind = NumberKind::zero;
      }
    }
    const Wide scaled = split.fraction.significand * static_cast<uint32_t>(pieces);
    const int shift = -split.fraction.exponent;
    split.piece = shift < 120 ? static_cast<int>(scaled >> shift) : 0;
  }
  return split;
}

/// 2^x before rounding, from its split and the chord of its piece.
constexpr Exact exact_exp2(const Exp2Split& split, FloatFormat slope_format, uint32_t slope,
                           FloatFormat intercept_format, uint32_t intercept) {
  if (split.vanishes) {
    return {.kind = NumberKind::zero};
  }
  Exact value = exact_sum(exact_product(split.fraction, unpack(slope_format, slope)),
                          unpack(intercept_format, intercept));
  value.exponent += split.integer;
  return value;
}

/// Intercepts lie in (0.5, 1], so of their exponent only the lowest bit says something; the bits
/// above it carry the number of the piece down the array.
constexpr uint32_t encode_intercept(FloatFormat format, uint32_t intercept, int piece) {
  const uint32_t low = format.fraction_mask() | (uint32_t{1} << format.fraction_bits);
  return (intercept & low) | (static_cast<uint32_t>(piece) << (format.fraction_bits + 1));
}

constexpr int intercept_piece(FloatFormat format, uint32_t encoded) {
  const uint32_t exponent = (encoded >> format.fraction_bits) & format.exponent_mask();
  return static_cast<int>(exponent >> 1);
}

constexpr uint32_t decode_intercept(FloatFormat format, uint32_t encoded) {
  const uint32_t low = format.fraction_mask() | (uint32_t{1} << format.fraction_bits);
  const auto high = static_cast<uint32_t>((format.bias() - 1) >> 1);
  return (encoded & low) | (high << (format.fraction_bits + 1));
}

/// Most pieces whose numbers fit the exponent of an intercept.
constexpr int most_pieces(FloatFormat intercept_format) {
  return 1 << (intercept_format.exponent_bits - 1);
}

/// The exp2 unit of a PE: `x` and `slope` elements, `intercept` an encoded accumulator. The result
/// counts only if the piece is x's own.
struct ElementExp2 {
  bool hit;
  DualRounded value;
};

constexpr ElementExp2 element_exp2(const ArrayFormats& formats, uint32_t x, uint32_t slope,
                                   uint32_t intercept, int pieces) {
  const Exp2Split split = split_exp2(formats.element, x, pieces);
  const Exact value = exact_exp2(split, formats.element, slope, formats.accumulator,
                                 decode_intercept(formats.accumulator, intercept));
  return {.hit = split.piece == intercept_piece(formats.accumulator, intercept),
          .value = round_dual(formats, value)};
}

/// Chords, piece 0 first, computed in float64 and rounded once.
struct Exp2Table {
  std::vector<uint32_t> slopes;
  std::vector<uint32_t> intercepts;  // not encoded
};

/// Throws InvalidArgument unless `pieces` is a power of two that the intercept's exponent can
/// carry.
Exp2Table exp2_table(FloatFormat slope_format, FloatFormat intercept_format, int pieces);

/// 2^x in one format throughout: the accumulators' own.
uint32_t accumulator_exp2(FloatFormat format, uint32_t x, const Exp2Table& table);

/// The nearest number of the format; exact halves to even.
uint32_t round_double(FloatFormat format, double value);
/// The value of the bits.
double to_double(FloatFormat format, uint32_t bits);

}  // namespace flashloom::systolic
