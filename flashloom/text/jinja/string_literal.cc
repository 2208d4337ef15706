#include "flashloom/text/jinja/string_literal.h"

#include <utf8proc.h>

#include <charconv>
#include <cstdint>

#include "flashloom/text/jinja/template_error.h"

namespace flashloom::jinja {
namespace {

// The digits at `at`: exactly `count` hexadecimal ones, or up to three octal ones.
uint32_t escaped_code(std::string_view text, size_t& at, size_t count, int base, int line) {
  uint32_t code = 0;
  const char* first = text.data() + at;
  const char* last = first + std::min(count, text.size() - at);
  const auto [end, error] = std::from_chars(first, last, code, base);
  if (error != std::errc() || (base == 16 && end != first + count) ||
      !utf8proc_codepoint_valid(static_cast<utf8proc_int32_t>(code))) {
    throw TemplateError(line, "a string escape that names no character");
  }
  at += static_cast<size_t>(end - first);
  return code;
}

}  // namespace

std::string string_literal(std::string_view inside, int line) {
  constexpr std::string_view kLetters = "\\'\"abfnrtv";
  constexpr std::string_view kValues = "\\'\"\a\b\f\n\r\t\v";
  std::string out;
  for (size_t at = 0; at < inside.size();) {
    if (inside[at] != '\\' || at + 1 == inside.size()) {
      out += inside[at++];
      continue;
    }
    const char letter = inside[at + 1];
    const size_t simple = kLetters.find(letter);
    const size_t digits = letter == 'x' ? 2 : (letter == 'u' ? 4 : (letter == 'U' ? 8 : 0));
    const bool octal = letter >= '0' && letter <= '7';
    if (simple != std::string_view::npos) {
      out += kValues[simple];
      at += 2;
    } else if (digits != 0 || octal) {
      at += octal ? 1 : 2;
      const uint32_t code = escaped_code(inside, at, octal ? 3 : digits, octal ? 8 : 16, line);
      utf8proc_uint8_t bytes[4];
      const auto width = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
      out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(width));
    } else if (letter == '\n') {
      at += 2;
    } else {
      out += '\\';
      ++at;
    }
  }
  return out;
}

}  // namespace flashloom::jinja
