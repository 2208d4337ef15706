#include "flashloom/text/unicode_utf8.h"

#include <simdjson.h>

namespace flashloom {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Sequence {
  size_t size;  // bytes of the character, or of the maximal invalid part
  bool valid;
  bool incomplete;  // a proper prefix of a character, cut off by the end
};

// Table 3-7 of the Unicode standard: the second byte's range depends on the first.
Sequence next_sequence(std::string_view bytes) {
  const auto byte = [bytes](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) {
    return {1, true, false};
  }
  const size_t length = first < 0xC2   ? 0
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
  if (length == 0) {
    return {1, false, false};
  }
  unsigned low = 0x80;
  unsigned high = 0xBF;
  if (first == 0xE0) {
    low = 0xA0;
  } else if (first == 0xED) {
    high = 0x9F;
  } else if (first == 0xF0) {
    low = 0x90;
  } else if (first == 0xF4) {
    high = 0x8F;
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) {
      return {i, false, true};
    }
    if (byte(i) < low || byte(i) > high) {
      return {i, false, false};
    }
    low = 0x80;
    high = 0xBF;
  }
  return {length, true, false};
}

}  // namespace

void append_code_point(std::string& out, uint32_t code_point) {
  const auto put = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

bool is_valid_utf8(std::string_view text) {
  return simdjson::validate_utf8(text.data(), text.size());
}

size_t append_repaired_utf8(std::string& out, std::string_view bytes, bool keep_incomplete) {
  size_t position = 0;
  while (position < bytes.size()) {
    const Sequence sequence = next_sequence(bytes.substr(position));
    if (sequence.valid) {
      out.append(bytes, position, sequence.size);
    } else if (sequence.incomplete && keep_incomplete) {
      break;
    } else {
      out.append(kReplacement);
    }
    position += sequence.size;
  }
  return position;
}

}  // namespace flashloom
