#pragma once

#include <cstdint>
#include <string_view>

namespace flashloom::systolic {

/// A binary floating-point format with IEEE's fields, at most 32 bits wide. The array knows neither
/// subnormal numbers (they are zero) nor NaN payloads (one NaN, positive, its top fraction bit
/// set).
struct FloatFormat {
  int exponent_bits;
  int fraction_bits;

  constexpr int width() const { return 1 + exponent_bits + fraction_bits; }

  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }

  /// Exponents of normal numbers, 2^exponent times [1, 2).
  constexpr int smallest_exponent() const { return 1 - bias(); }

  constexpr int largest_exponent() const { return bias(); }

  constexpr uint32_t fraction_mask() const { return (uint32_t{1} << fraction_bits) - 1; }

  constexpr uint32_t exponent_mask() const { return (uint32_t{1} << exponent_bits) - 1; }

  constexpr uint32_t sign_bit() const { return uint32_t{1} << (width() - 1); }

  constexpr uint32_t mask() const { return sign_bit() | (sign_bit() - 1); }

  constexpr uint32_t infinity() const { return exponent_mask() << fraction_bits; }

  constexpr uint32_t nan() const { return infinity() | (uint32_t{1} << (fraction_bits - 1)); }

  constexpr uint32_t one() const { return static_cast<uint32_t>(bias()) << fraction_bits; }

  constexpr bool operator==(const FloatFormat&) const = default;
};

inline constexpr FloatFormat kFp16{.exponent_bits = 5, .fraction_bits = 10};
inline constexpr FloatFormat kBf16{.exponent_bits = 8, .fraction_bits = 7};
inline constexpr FloatFormat kFp32{.exponent_bits = 8, .fraction_bits = 23};

/// What flows from the left and stays in a PE (element), and what is summed (accumulator).
struct ArrayFormats {
  FloatFormat element = kFp16;
  FloatFormat accumulator = kFp32;

  constexpr bool operator==(const ArrayFormats&) const = default;
};

/// "fp16", "bf16", "fp32".
std::string_view float_format_name(FloatFormat format);
/// The reverse; throws InvalidArgument.
FloatFormat parse_float_format(std::string_view name);

}  // namespace flashloom::systolic
