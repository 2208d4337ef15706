#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace flashloom {

/// Element types of a tensor.
enum class DType : uint8_t { f32, f64, bf16, f16, e4m3, i8, u8, i32, i64, u64 };

/// Bytes of one element.
constexpr size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::e4m3:
    case DType::i8:
    case DType::u8:
      return 1;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f64:
    case DType::i64:
    case DType::u64:
      return 8;
  }
  return 0;
}

constexpr std::string_view dtype_name(DType dtype) {
  constexpr std::string_view kNames[] = {"f32", "f64", "bf16", "f16", "e4m3",
                                         "i8",  "u8",  "i32",  "i64", "u64"};
  return kNames[static_cast<size_t>(dtype)];
}

/// bfloat16: the upper half of a float32. Conversion rounds to nearest even; NaN stays NaN.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;

  explicit constexpr bf16(float value) : bits(round_bits(value)) {}

  explicit constexpr operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }

  static constexpr bf16 from_bits(uint16_t bits) {
    bf16 value;
    value.bits = bits;
    return value;
  }

 private:
  static constexpr uint16_t round_bits(float value) {
    const auto pattern = std::bit_cast<uint32_t>(value);
    if ((pattern & 0x7fffffffu) > 0x7f800000u) {
      return static_cast<uint16_t>((pattern >> 16) | 0x40u);  // quiet the NaN, keep its sign
    }
    return static_cast<uint16_t>((pattern + 0x7fffu + ((pattern >> 16) & 1u)) >> 16);
  }
};

/// IEEE binary16. Conversion rounds to nearest even, overflows to infinity, keeps subnormals.
struct f16 {
  uint16_t bits = 0;

  f16() = default;

  explicit constexpr f16(float value) : bits(round_bits(value)) {}

  explicit constexpr operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity, NaN
      return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    if (magnitude < 0x400u) {  // zero, subnormal: an exact product of small numbers
      const float value = static_cast<float>(magnitude) * 0x1p-24f;
      return sign != 0 ? -value : value;
    }
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  }

  static constexpr f16 from_bits(uint16_t bits) {
    f16 value;
    value.bits = bits;
    return value;
  }

 private:
  static constexpr uint16_t round_bits(float value) {
    const auto pattern = std::bit_cast<uint32_t>(value);
    const auto sign = static_cast<uint16_t>((pattern >> 16) & 0x8000u);
    const uint32_t magnitude = pattern & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) {  // rounds past 65504
      return sign | 0x7c00u;
    }
    if (magnitude < 0x38800000u) {  // subnormal in binary16: add 0.5 so that the ulp is 2^-24
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
};

namespace detail {

template <class T>
struct DTypeOf;

template <>
struct DTypeOf<float> {
  static constexpr DType kValue = DType::f32;
};

template <>
struct DTypeOf<double> {
  static constexpr DType kValue = DType::f64;
};

template <>
struct DTypeOf<bf16> {
  static constexpr DType kValue = DType::bf16;
};

template <>
struct DTypeOf<f16> {
  static constexpr DType kValue = DType::f16;
};

template <>
struct DTypeOf<int8_t> {
  static constexpr DType kValue = DType::i8;
};

template <>
struct DTypeOf<uint8_t> {
  static constexpr DType kValue = DType::u8;
};

template <>
struct DTypeOf<int32_t> {
  static constexpr DType kValue = DType::i32;
};

template <>
struct DTypeOf<int64_t> {
  static constexpr DType kValue = DType::i64;
};

template <>
struct DTypeOf<uint64_t> {
  static constexpr DType kValue = DType::u64;
};

}  // namespace detail

/// The DType of a C++ element type.
template <class T>
inline constexpr DType kDTypeOf = detail::DTypeOf<std::remove_const_t<T>>::kValue;

}  // namespace flashloom
