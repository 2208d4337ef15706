#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace flashloom {

struct DecodedCodePoint {
  uint32_t value;
  uint32_t size;  // bytes
};

/// First code point of text that is known to be UTF-8.
inline DecodedCodePoint decode_code_point(const char* text) {
  const auto byte = [text](int i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[i]));
  };
  const uint32_t first = byte(0);
  if (first < 0x80) {
    return {first, 1};
  }
  if (first < 0xE0) {
    return {(first & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  }
  if (first < 0xF0) {
    return {(first & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  return {(first & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

/// Start of the code point that ends before `end`; `end` > `begin`, the text is UTF-8.
inline const char* previous_code_point(const char* begin, const char* end) {
  do {
    --end;
  } while (end > begin && (static_cast<unsigned char>(*end) & 0xC0) == 0x80);
  return end;
}

void append_code_point(std::string& out, uint32_t code_point);

bool is_valid_utf8(std::string_view text);

/// Appends `bytes`, each maximal invalid part replaced by one U+FFFD (Unicode 16, section 3.9;
/// Python's errors="replace", Rust's from_utf8_lossy). With `keep_incomplete`, a sequence that the
/// end of `bytes` cuts off is not replaced; returns how many bytes were consumed.
size_t append_repaired_utf8(std::string& out, std::string_view bytes, bool keep_incomplete);

}  // namespace flashloom
