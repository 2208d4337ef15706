#pragma once

#include <bit>
#include <cstdint>

#include "flashloom/systolic/numeric/float_format.h"

namespace flashloom::systolic {

/// The arithmetic of the array in integers: what the RTL and every fast path must reproduce bit for
/// bit. Numbers are their bits in the low end of a uint32_t.
///
/// Rules: one rounding an operation, to nearest even; subnormal operands count as zeros of their
/// sign; a result whose rounding, done with unbounded exponent, lies below the smallest normal
/// number is a zero of its sign ("tininess after rounding"); every NaN is FloatFormat::nan().

using Wide = unsigned __int128;

enum class NumberKind : uint8_t { zero, finite, infinity, nan };

/// A number before rounding: (-1)^sign · significand · 2^exponent. After a shift the lowest bit of
/// the significand stands for everything below it, so it must lie well below the rounding point.
struct Exact {
  NumberKind kind = NumberKind::zero;
  bool sign = false;
  int exponent = 0;
  Wide significand = 0;
};

constexpr int bit_length(Wide value) {
  const auto high = static_cast<uint64_t>(value >> 64);
  return high != 0 ? 128 - std::countl_zero(high)
                   : 64 - std::countl_zero(static_cast<uint64_t>(value));
}

constexpr Exact unpack(FloatFormat format, uint32_t bits) {
  Exact number;
  number.sign = (bits & format.sign_bit()) != 0;
  const uint32_t exponent = (bits >> format.fraction_bits) & format.exponent_mask();
  const uint32_t fraction = bits & format.fraction_mask();
  if (exponent == format.exponent_mask()) {
    number.kind = fraction != 0 ? NumberKind::nan : NumberKind::infinity;
  } else if (exponent != 0) {
    number.kind = NumberKind::finite;
    number.exponent = static_cast<int>(exponent) - format.bias() - format.fraction_bits;
    number.significand = fraction | (uint32_t{1} << format.fraction_bits);
  }
  return number;
}

/// The one rounding.
constexpr uint32_t round_to(FloatFormat format, const Exact& number) {
  const uint32_t sign = number.sign ? format.sign_bit() : 0;
  if (number.kind == NumberKind::nan) {
    return format.nan();
  }
  if (number.kind == NumberKind::infinity) {
    return sign | format.infinity();
  }
  if (number.kind == NumberKind::zero || number.significand == 0) {
    return sign;
  }
  const int precision = format.fraction_bits + 1;
  const int excess = bit_length(number.significand) - precision;
  Wide kept = number.significand;
  int exponent = number.exponent + excess;  // of the last kept bit
  if (excess > 0) {
    const Wide half = Wide{1} << (excess - 1);
    const Wide rest = number.significand & ((half << 1) - 1);
    kept = number.significand >> excess;
    const bool up = rest > half || (rest == half && (kept & 1) != 0);
    kept += up ? 1 : 0;
    if (bit_length(kept) > precision) {
      kept >>= 1;
      ++exponent;
    }
  } else {
    kept <<= -excess;
  }
  const int leading = exponent + format.fraction_bits;
  if (leading > format.largest_exponent()) {
    return sign | format.infinity();
  }
  if (leading < format.smallest_exponent()) {
    return sign;
  }
  const auto biased = static_cast<uint32_t>(leading + format.bias());
  return sign | (biased << format.fraction_bits) |
         (static_cast<uint32_t>(kept) & format.fraction_mask());
}

/// Rounds a number of one format to another.
constexpr uint32_t convert(FloatFormat to, FloatFormat from, uint32_t bits) {
  return round_to(to, unpack(from, bits));
}

constexpr Exact exact_product(const Exact& a, const Exact& b) {
  Exact product;
  product.sign = a.sign != b.sign;
  if (a.kind == NumberKind::nan || b.kind == NumberKind::nan ||
      (a.kind == NumberKind::infinity && b.kind == NumberKind::zero) ||
      (a.kind == NumberKind::zero && b.kind == NumberKind::infinity)) {
    product.kind = NumberKind::nan;
  } else if (a.kind == NumberKind::infinity || b.kind == NumberKind::infinity) {
    product.kind = NumberKind::infinity;
  } else if (a.kind == NumberKind::finite && b.kind == NumberKind::finite) {
    product.kind = NumberKind::finite;
    product.exponent = a.exponent + b.exponent;
    product.significand = a.significand * b.significand;
  }
  return product;
}

/// The leading bit goes to bit 120: a sum has room for its carry, and the 48 bits of a product and
/// the 24 of an addend leave 72 zeros below, so that a shift drops bits only where no cancellation
/// can bring them near the rounding point.
constexpr Exact normalised(Exact number) {
  const int shift = 121 - bit_length(number.significand);
  number.significand <<= shift;
  number.exponent -= shift;
  return number;
}

constexpr Exact exact_sum(const Exact& a, const Exact& b) {
  if (a.kind == NumberKind::nan || b.kind == NumberKind::nan) {
    return {.kind = NumberKind::nan};
  }
  if (a.kind == NumberKind::infinity || b.kind == NumberKind::infinity) {
    if (a.kind == b.kind && a.sign != b.sign) {
      return {.kind = NumberKind::nan};
    }
    return a.kind == NumberKind::infinity ? a : b;
  }
  if (a.kind == NumberKind::zero && b.kind == NumberKind::zero) {
    return {.kind = NumberKind::zero, .sign = a.sign && b.sign};
  }
  if (a.kind == NumberKind::zero || b.kind == NumberKind::zero) {
    return a.kind == NumberKind::zero ? b : a;
  }
  Exact large = normalised(a);
  Exact small = normalised(b);
  if (large.exponent < small.exponent ||
      (large.exponent == small.exponent && large.significand < small.significand)) {
    const Exact swapped = large;
    large = small;
    small = swapped;
  }
  const int shift = large.exponent - small.exponent;
  const Wide lost = shift > 120 ? small.significand : small.significand & ((Wide{1} << shift) - 1);
  const Wide shifted = (shift > 120 ? Wide{0} : small.significand >> shift) | (lost != 0 ? 1 : 0);
  Exact sum = large;
  sum.significand =
      large.sign == small.sign ? large.significand + shifted : large.significand - shifted;
  if (sum.significand == 0) {
    return {.kind = NumberKind::zero};  // x - x is +0 when rounding to nearest
  }
  return sum;
}

/// a·b + c before rounding.
constexpr Exact exact_fma(FloatFormat product, uint32_t a, uint32_t b, FloatFormat addend,
                          uint32_t c) {
  return exact_sum(exact_product(unpack(product, a), unpack(product, b)), unpack(addend, c));
}

/// a·b + c with all three and the result in one format.
constexpr uint32_t fma(FloatFormat format, uint32_t a, uint32_t b, uint32_t c) {
  return round_to(format, exact_fma(format, a, b, format, c));
}

/// a - b.
constexpr uint32_t subtract(FloatFormat format, uint32_t a, uint32_t b) {
  return fma(format, format.one(), a, b ^ format.sign_bit());
}

/// The unit of a PE: one exact result, rounded once to each of the array's formats.
struct DualRounded {
  uint32_t accumulator;
  uint32_t element;

  constexpr bool operator==(const DualRounded&) const = default;
};

constexpr DualRounded round_dual(const ArrayFormats& formats, const Exact& exact) {
  return {.accumulator = round_to(formats.accumulator, exact),
          .element = round_to(formats.element, exact)};
}

/// a, b of the element format, c of the accumulator format.
constexpr DualRounded fma_dual(const ArrayFormats& formats, uint32_t a, uint32_t b, uint32_t c) {
  return round_dual(formats, exact_fma(formats.element, a, b, formats.accumulator, c));
}

}  // namespace flashloom::systolic
