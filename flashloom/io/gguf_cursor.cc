#include "flashloom/io/gguf_cursor.h"

#include <fmt/format.h>

#include "flashloom/core/error.h"
#include "flashloom/io/utf8.h"

namespace flashloom {
namespace {

constexpr int kMaxArrayDepth = 4;  // no known key nests arrays at all

}  // namespace

void GgufCursor::fail(std::string_view what) const {
  throw IoError(file_, fmt::format("byte {}", position_), what);
}

std::span<const std::byte> GgufCursor::take(uint64_t count, std::string_view what) {
  if (count > left()) {
    fail(fmt::format("{} needs {} bytes, the file has {} more", what, count, left()));
  }
  const auto result = bytes_.subspan(position_, count);
  position_ += count;
  return result;
}

size_t GgufCursor::read_count(uint64_t least, std::string_view what) {
  const auto count = read<uint64_t>(what);
  if (count > left() / least) {
    fail(fmt::format("{} is {}, more than the {} bytes left can hold", what, count, left()));
  }
  return count;
}

std::string_view GgufCursor::read_text(std::string_view what) {
  const auto length = read<uint64_t>(what);
  const auto bytes = take(length, what);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!is_utf8(text)) {
    fail(fmt::format("{} is not valid UTF-8", what));
  }
  return text;
}

GgufType GgufCursor::read_type() {
  const auto number = read<uint32_t>("the type of a value");
  if (number > static_cast<uint32_t>(GgufType::f64)) {
    fail(fmt::format("unknown type of value {}", number));
  }
  return static_cast<GgufType>(number);
}

GgufArray GgufCursor::read_array(int depth) {
  if (depth > kMaxArrayDepth) {
    fail(fmt::format("arrays are nested deeper than {}", kMaxArrayDepth));
  }
  GgufArray array;
  array.type = read_type();
  if (array.type == GgufType::string) {
    array.count = read_count(sizeof(uint64_t), "the length of an array");
    array.strings.reserve(array.count);
    for (size_t i = 0; i < array.count; ++i) {
      array.strings.push_back(read_text("a string of an array"));
    }
  } else if (array.type == GgufType::array) {
    array.count = read_count(sizeof(uint32_t) + sizeof(uint64_t), "the length of an array");
    for (size_t i = 0; i < array.count; ++i) {
      array.arrays.push_back(read_array(depth + 1));
    }
  } else {
    array.count = read_count(gguf_number_bytes(array.type), "the length of an array");
    array.numbers = take(array.count * gguf_number_bytes(array.type), "an array");
  }
  return array;
}

GgufValue GgufCursor::read_value() {
  GgufValue result;
  result.type = read_type();
  switch (result.type) {
    case GgufType::u8:
      result.value = uint64_t{read<uint8_t>("a value")};
      break;
    case GgufType::u16:
      result.value = uint64_t{read<uint16_t>("a value")};
      break;
    case GgufType::u32:
      result.value = uint64_t{read<uint32_t>("a value")};
      break;
    case GgufType::u64:
      result.value = read<uint64_t>("a value");
      break;
    case GgufType::i8:
      result.value = int64_t{read<int8_t>("a value")};
      break;
    case GgufType::i16:
      result.value = int64_t{read<int16_t>("a value")};
      break;
    case GgufType::i32:
      result.value = int64_t{read<int32_t>("a value")};
      break;
    case GgufType::i64:
      result.value = read<int64_t>("a value");
      break;
    case GgufType::f32:
      result.value = read<float>("a value");
      break;
    case GgufType::f64:
      result.value = read<double>("a value");
      break;
    case GgufType::boolean:
      result.value = read<uint8_t>("a value") != 0;
      break;
    case GgufType::string:
      result.value = read_text("a string");
      break;
    case GgufType::array:
      result.value = read_array(1);
      break;
  }
  return result;
}

}  // namespace flashloom
