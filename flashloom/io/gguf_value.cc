#include "flashloom/io/gguf_value.h"

#include <cstring>

namespace flashloom {
namespace {

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

}  // namespace

size_t gguf_number_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      return 0;
  }
  return 0;
}

std::string_view gguf_type_name(GgufType type) {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

std::optional<int64_t> GgufArray::integer(size_t i) const {
  const size_t width = gguf_number_bytes(type);
  if (width == 0 || i >= count) {
    return std::nullopt;
  }
  const std::byte* bytes = numbers.data() + i * width;
  switch (type) {
    case GgufType::u8:
    case GgufType::boolean:
      return load<uint8_t>(bytes);
    case GgufType::i8:
      return load<int8_t>(bytes);
    case GgufType::u16:
      return load<uint16_t>(bytes);
    case GgufType::i16:
      return load<int16_t>(bytes);
    case GgufType::u32:
      return load<uint32_t>(bytes);
    case GgufType::i32:
      return load<int32_t>(bytes);
    case GgufType::i64:
      return load<int64_t>(bytes);
    case GgufType::u64: {
      const auto value = load<uint64_t>(bytes);
      return value <= uint64_t{INT64_MAX} ? std::optional(static_cast<int64_t>(value))
                                          : std::nullopt;
    }
    default:
      return std::nullopt;
  }
}

}  // namespace flashloom
