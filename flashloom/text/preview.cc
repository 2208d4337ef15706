#include "flashloom/text/preview.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/text/jinja/characters.h"

namespace flashloom {
namespace {

constexpr size_t kWidth = 100;  // columns, as the code's own lines

// A character of two bytes or more that is well-formed, or one of ASCII.
bool is_whole(std::string_view character) {
  return character.size() > 1 || static_cast<unsigned char>(character[0]) < 0x80;
}

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  return bytes.empty() ? fmt::format("<{}>", id) : escape_invisible(bytes);
}

}  // namespace

std::string escape_invisible(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const std::string_view character = text.substr(at, jinja::character_bytes(text, at));
    const auto code = static_cast<uint32_t>(jinja::character_at(text, at));
    if (code == '\n' || code == '\r' || code == '\t') {
      out += code == '\n' ? "\\n" : (code == '\r' ? "\\r" : "\\t");
    } else if (!is_whole(character) || (code < 0x80 && !jinja::is_printable(code))) {
      out += fmt::format("\\x{:02x}", code);
    } else if (!jinja::is_printable(code)) {
      out += code < 0x10000 ? fmt::format("\\u{:04x}", code) : fmt::format("\\U{:08x}", code);
    } else {
      out += character;
    }
    at += character.size();
  }
  return out;
}

std::string preview_example(const Tokenizer& tokenizer, std::span<const int32_t> tokens,
                            std::span<const uint8_t> loss) {
  const auto learnt =
      std::count_if(loss.begin(), loss.end(), [](uint8_t flag) { return flag != 0; });
  std::string out = fmt::format("{} tokens, {} to learn", tokens.size(), learnt);
  size_t column = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string text = token_text(tokenizer, tokens[i]);
    const size_t width = jinja::count_characters(text) + 1;
    if (i == 0 || (loss[i] != 0) != (loss[i - 1] != 0) || column + width > kWidth) {
      const std::string_view label = loss[i] != 0 ? "\n  learn  " : "\n  read   ";
      out += label;
      column = label.size() - 1;
    } else {
      out += "│";
    }
    out += text;
    column += width;
  }
  out += '\n';
  return out;
}

}  // namespace flashloom
