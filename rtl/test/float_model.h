#pragma once

// Floating point of the array by integers alone, for the test benches: an independent statement of
// what the SystemVerilog units compute. Values are integers times powers of two; nothing is aligned
// or normalised the way the hardware does it.

#include <cstdint>

namespace flashloom::rtl {

struct Format {
  int exponent_bits;
  int mantissa_bits;  // stored

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }

  int bits() const { return 1 + exponent_bits + mantissa_bits; }

  uint32_t infinity(bool negative) const {
    return (uint32_t(negative) << (bits() - 1)) | (((1u << exponent_bits) - 1) << mantissa_bits);
  }

  uint32_t quiet_nan() const { return infinity(false) | (1u << (mantissa_bits - 1)); }
};

inline constexpr Format kHalf{5, 10};
inline constexpr Format kBfloat16{8, 7};
inline constexpr Format kFloat{8, 23};

// (−1)^negative · magnitude · 2^exponent, or an infinity or NaN. Subnormals are read as zero.
struct Value {
  bool nan = false;
  bool infinite = false;
  bool negative = false;
  unsigned __int128 magnitude = 0;
  int exponent = 0;

  bool zero() const { return !nan && !infinite && magnitude == 0; }
};

Value decode(uint32_t word, Format format);
// To nearest even, once; below the smallest normal number after rounding a signed zero.
uint32_t encode(const Value& value, Format format);

Value negated(Value value);
Value multiply(const Value& a, const Value& b);
// Exact, but for a summand more than 2^70 below the other's last bit, which counts as one unit
// there.
Value add(const Value& a, const Value& b);
Value fma(const Value& a, const Value& b, const Value& c);
uint32_t reciprocal(uint32_t word, Format format);

// 2^x by the linear piece floor(|x − trunc x| · pieces); from |x| = 2^exponent_bits on zero.
struct Exp2 {
  int piece;
  Value whole_power;  // 2^trunc(x)
  Value fraction;
  bool huge;
};

Exp2 split(const Value& x, Format format, int pieces);
Value exp2(const Exp2& x, bool nan, const Value& slope, const Value& intercept);

}  // namespace flashloom::rtl
