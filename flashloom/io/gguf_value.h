#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

namespace flashloom {

/// Types of metadata values, by the numbers of the format.
enum class GgufType : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

/// An array of metadata, where it lies in the map: numbers as raw bytes (any alignment), strings
/// and inner arrays as lists.
struct GgufArray {
  GgufType type = GgufType::u8;  // of the elements
  size_t count = 0;
  std::span<const std::byte> numbers;
  std::vector<std::string_view> strings;
  std::vector<GgufArray> arrays;

  /// Element i of an array of integers or booleans; none for other types and what exceeds int64.
  std::optional<int64_t> integer(size_t i) const;
};

/// A metadata value; small integers are widened. Strings are UTF-8 (checked) and point to the map.
struct GgufValue {
  GgufType type = GgufType::u8;
  std::variant<uint64_t, int64_t, float, double, bool, std::string_view, GgufArray> value;
};

std::string_view gguf_type_name(GgufType type);

/// Bytes of a number or boolean of this type; 0 for strings and arrays.
size_t gguf_number_bytes(GgufType type);

}  // namespace flashloom
