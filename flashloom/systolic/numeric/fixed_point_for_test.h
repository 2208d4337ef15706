#pragma once

#include <array>
#include <cstdint>

#include "flashloom/systolic/numeric/float_format.h"

namespace flashloom::systolic {

/// The independent model of the array's arithmetic: every number is an integer multiple of 2^-320
/// in 704 bits of two's complement, so that products and sums are exact without any alignment,
/// sticky bit or normalisation, and rounding looks at the whole integer. Slow and obvious.
class FixedPoint {
 public:
  static constexpr int kWords = 11;
  static constexpr int kPoint = 320;

  /// Finite numbers only; subnormal ones are zero.
  static FixedPoint from_bits(FloatFormat format, uint32_t bits) {
    const uint32_t exponent = (bits >> format.fraction_bits) & format.exponent_mask();
    FixedPoint value;
    if (exponent != 0) {
      const uint64_t significand =
          (bits & format.fraction_mask()) | (uint64_t{1} << format.fraction_bits);
      value.add_shifted(significand,
                        static_cast<int>(exponent) - format.bias() - format.fraction_bits + kPoint);
    }
    return (bits & format.sign_bit()) != 0 ? value.negated() : value;
  }

  /// significand · 2^exponent, negative if `negative`.
  static FixedPoint from_integer(uint64_t significand, int exponent, bool negative) {
    FixedPoint value;
    value.add_shifted(significand, exponent + kPoint);
    return negative ? value.negated() : value;
  }

  FixedPoint negated() const {
    FixedPoint result;
    uint64_t carry = 1;
    for (int i = 0; i < kWords; ++i) {
      result.words_[i] = ~words_[i] + carry;
      carry = carry != 0 && result.words_[i] == 0 ? 1 : 0;
    }
    return result;
  }

  FixedPoint operator+(const FixedPoint& other) const {
    FixedPoint result;
    unsigned carry = 0;
    for (int i = 0; i < kWords; ++i) {
      const uint64_t partial = words_[i] + other.words_[i];
      result.words_[i] = partial + carry;
      carry = (partial < words_[i] ? 1u : 0u) | (result.words_[i] < partial ? 1u : 0u);
    }
    return result;
  }

  bool is_zero() const { return words_ == std::array<uint64_t, kWords>{}; }

  bool is_negative() const { return (words_[kWords - 1] >> 63) != 0; }

  /// To nearest even with unbounded exponent; then zero below the smallest normal number, infinity
  /// above the largest. `zero_sign` is the sign of an exact zero.
  uint32_t rounded(FloatFormat format, bool zero_sign) const {
    if (is_zero()) {
      return zero_sign ? format.sign_bit() : 0;
    }
    const bool sign = is_negative();
    const FixedPoint magnitude = sign ? negated() : *this;
    int word = kWords - 1;
    while (magnitude.words_[word] == 0) {
      --word;
    }
    int top = word * 64 + 63;
    while (!magnitude.bit(top)) {
      --top;
    }
    uint64_t kept = 0;
    for (int i = 0; i <= format.fraction_bits; ++i) {
      kept = 2 * kept + (magnitude.bit(top - i) ? 1 : 0);
    }
    const int half = top - format.fraction_bits - 1;
    bool below = false;
    for (int i = half - 1; i >= 0 && !below;
         i -= i % 64 == 63 && magnitude.words_[i / 64] == 0 ? 64 : 1) {
      below = magnitude.bit(i);
    }
    if (magnitude.bit(half) && (below || kept % 2 == 1)) {
      ++kept;
    }
    int exponent = top - kPoint;
    if (kept == uint64_t{2} << format.fraction_bits) {
      kept /= 2;
      ++exponent;
    }
    const uint32_t sign_bits = sign ? format.sign_bit() : 0;
    if (exponent > format.largest_exponent()) {
      return sign_bits | format.infinity();
    }
    if (exponent < format.smallest_exponent()) {
      return sign_bits;
    }
    return sign_bits + (static_cast<uint32_t>(exponent + format.bias()) << format.fraction_bits) +
           static_cast<uint32_t>(kept - (uint64_t{1} << format.fraction_bits));
  }

 private:
  bool bit(int index) const {
    return index >= 0 && ((words_[index / 64] >> (index % 64)) & 1) != 0;
  }

  void add_shifted(uint64_t value, int shift) {
    words_[shift / 64] |= value << (shift % 64);
    if (shift % 64 != 0) {
      words_[shift / 64 + 1] |= value >> (64 - shift % 64);
    }
  }

  std::array<uint64_t, kWords> words_ = {};  // least significant first
};

/// The fused multiply-add of the model, a·b + c rounded to `result`, special numbers by cases.
struct FixedPointFma {
  FloatFormat product;
  FloatFormat addend;
  FloatFormat result;
  int scale = 0;  // the sum is multiplied by 2^scale before rounding

  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    const bool sign_ab = sign(product, a) != sign(product, b);
    const bool infinite_ab = infinite(product, a) || infinite(product, b);
    const bool invalid = (infinite(product, a) && zero(product, b)) ||
                         (zero(product, a) && infinite(product, b)) ||
                         (infinite_ab && infinite(addend, c) && sign_ab != sign(addend, c));
    if (nan(product, a) || nan(product, b) || nan(addend, c) || invalid) {
      return result.nan();
    }
    if (infinite_ab || infinite(addend, c)) {
      const bool negative = infinite_ab ? sign_ab : sign(addend, c);
      return result.infinity() | (negative ? result.sign_bit() : 0);
    }
    const bool zero_ab = zero(product, a) || zero(product, b);
    FixedPoint sum = scaled(addend, c);
    if (!zero_ab) {
      const uint64_t significand = uint64_t{significand_of(a)} * significand_of(b);
      sum = sum +
            FixedPoint::from_integer(significand, exponent_of(a) + exponent_of(b) + scale, sign_ab);
    }
    return sum.rounded(result, zero_ab && zero(addend, c) && sign_ab && sign(addend, c));
  }

  static bool sign(FloatFormat f, uint32_t x) { return (x & f.sign_bit()) != 0; }

  static uint32_t exponent(FloatFormat f, uint32_t x) {
    return (x >> f.fraction_bits) & f.exponent_mask();
  }

  static bool zero(FloatFormat f, uint32_t x) { return exponent(f, x) == 0; }

  static bool nan(FloatFormat f, uint32_t x) {
    return exponent(f, x) == f.exponent_mask() && (x & f.fraction_mask()) != 0;
  }

  static bool infinite(FloatFormat f, uint32_t x) {
    return exponent(f, x) == f.exponent_mask() && (x & f.fraction_mask()) == 0;
  }

 private:
  uint32_t significand_of(uint32_t x) const {
    return (x & product.fraction_mask()) + (uint32_t{1} << product.fraction_bits);
  }

  int exponent_of(uint32_t x) const {
    return static_cast<int>(exponent(product, x)) - product.bias() - product.fraction_bits;
  }

  FixedPoint scaled(FloatFormat f, uint32_t x) const {
    if (scale == 0 || zero(f, x)) {
      return FixedPoint::from_bits(f, x);
    }
    const uint64_t significand = (x & f.fraction_mask()) + (uint64_t{1} << f.fraction_bits);
    return FixedPoint::from_integer(
        significand, static_cast<int>(exponent(f, x)) - f.bias() - f.fraction_bits + scale,
        sign(f, x));
  }
};

}  // namespace flashloom::systolic
