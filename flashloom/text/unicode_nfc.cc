#include "flashloom/text/unicode_nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "flashloom/text/unicode_class.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {
namespace {

// utf8proc's own ordering of marks is an insertion sort, quadratic in a run of them, so only its
// decomposition of single code points and its composition are used.
void append_normalized_segment(std::string& out, std::string_view segment,
                               std::vector<utf8proc_int32_t>& buffer) {
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  constexpr size_t kLongestDecomposition = 4;  // canonical, full; utf8proc reports more if needed
  buffer.clear();
  for (size_t position = 0; position < segment.size();) {
    const DecodedCodePoint decoded = decode_code_point(segment.data() + position);
    position += decoded.size;
    const size_t old_size = buffer.size();
    buffer.resize(old_size + kLongestDecomposition);
    int boundary = 0;
    const auto code_point = static_cast<utf8proc_int32_t>(decoded.value);
    utf8proc_ssize_t count = utf8proc_decompose_char(code_point, buffer.data() + old_size,
                                                     kLongestDecomposition, kOptions, &boundary);
    if (count > static_cast<utf8proc_ssize_t>(kLongestDecomposition)) {
      buffer.resize(old_size + static_cast<size_t>(count));
      count =
          utf8proc_decompose_char(code_point, buffer.data() + old_size, count, kOptions, &boundary);
    }
    buffer.resize(old_size + static_cast<size_t>(std::max<utf8proc_ssize_t>(count, 0)));
  }
  const auto combining_class = [](utf8proc_int32_t code_point) {
    return utf8proc_get_property(code_point)->combining_class;
  };
  for (auto first = buffer.begin(); first != buffer.end();) {
    if (combining_class(*first) == 0) {
      ++first;
      continue;
    }
    const auto last = std::find_if(first, buffer.end(),
                                   [&](utf8proc_int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(first, last, [&](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    first = last;
  }
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      buffer.data(), static_cast<utf8proc_ssize_t>(buffer.size()), kOptions);
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    append_code_point(out, static_cast<uint32_t>(buffer[static_cast<size_t>(i)]));
  }
}

}  // namespace

bool is_trivially_nfc(std::string_view text) {
  // U+0300, the first combining mark, is CC 80; below it every character is its own NFC.
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

void append_nfc(std::string& out, std::string_view text) {
  const CodePointClasses& classes = CodePointClasses::instance();
  std::vector<utf8proc_int32_t> buffer;
  // [copied, segment) is stable; [segment, position) is a starter and what may join it.
  size_t copied = 0;
  size_t segment = 0;
  bool changes = false;
  const auto flush = [&](size_t position) {
    if (changes) {
      out.append(text, copied, segment - copied);
      append_normalized_segment(out, text.substr(segment, position - segment), buffer);
      copied = position;
      changes = false;
    }
    segment = position;
  };
  for (size_t position = 0; position < text.size();) {
    const DecodedCodePoint decoded = decode_code_point(text.data() + position);
    const uint8_t bits = classes[decoded.value];
    if ((bits & kCombines) != 0) {
      changes = true;
    } else {
      flush(position);
    }
    position += decoded.size;
    if ((bits & kOpaque) != 0) {
      segment = position;  // nothing joins it from behind
    }
  }
  flush(text.size());
  out.append(text, copied);
}

}  // namespace flashloom
