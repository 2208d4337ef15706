#include "flashloom/text/jinja/characters.h"

#include <utf8proc.h>

#include <algorithm>

namespace flashloom::jinja {
namespace {

struct Character {
  char32_t code = 0;
  size_t bytes = 1;
};

Character decode(std::string_view text, size_t at) {
  utf8proc_int32_t code = 0;
  const auto left = static_cast<utf8proc_ssize_t>(text.size() - at);
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at);
  const utf8proc_ssize_t width = utf8proc_iterate(bytes, left, &code);
  if (width <= 0) {
    return {.code = static_cast<unsigned char>(text[at]), .bytes = 1};
  }
  return {.code = static_cast<char32_t>(code), .bytes = static_cast<size_t>(width)};
}

void append(std::string& out, char32_t code) {
  utf8proc_uint8_t bytes[4];
  const auto width = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(width));
}

enum class Case { lower, upper, title };

void append_in_case(std::string& out, std::string_view source, const Character& character,
                    Case wanted) {
  if (source.size() == 1) {  // ASCII, or a byte that is no UTF-8
    const char c = source[0];
    const bool lower = c >= 'a' && c <= 'z';
    const bool upper = c >= 'A' && c <= 'Z';
    out += lower && wanted != Case::lower   ? static_cast<char>(c - 'a' + 'A')
           : upper && wanted == Case::lower ? static_cast<char>(c - 'A' + 'a')
                                            : c;
    return;
  }
  const auto code = static_cast<utf8proc_int32_t>(character.code);
  if (character.code == 0xDF && wanted != Case::lower) {
    out += wanted == Case::upper ? "SS" : "Ss";
  } else {
    append(out, static_cast<char32_t>(wanted == Case::lower   ? utf8proc_tolower(code)
                                      : wanted == Case::upper ? utf8proc_toupper(code)
                                                              : utf8proc_totitle(code)));
  }
}

// Whether str.title goes on in lower case behind it: cased letters, not digits or marks.
bool is_cased(char32_t code) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
         category == UTF8PROC_CATEGORY_LT;
}

template <class ChooseCase>
std::string map_case(std::string_view text, ChooseCase choose) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character character = decode(text, at);
    append_in_case(out, text.substr(at, character.bytes), character, choose(character.code));
    at += character.bytes;
  }
  return out;
}

bool stripped(std::string_view character, std::optional<std::string_view> characters) {
  if (!characters) {
    return is_space(decode(character, 0).code);
  }
  for (size_t at = 0; at < characters->size(); at += character_bytes(*characters, at)) {
    if (characters->substr(at, character_bytes(*characters, at)) == character) {
      return true;
    }
  }
  return false;
}

// The first byte of the character that ends before `end`.
size_t character_before(std::string_view text, size_t end) {
  for (size_t width = 2; width <= std::min<size_t>(4, end); ++width) {
    if (character_bytes(text, end - width) == width) {
      return end - width;
    }
  }
  return end - 1;
}

}  // namespace

size_t character_bytes(std::string_view text, size_t at) {
  return decode(text, at).bytes;
}

char32_t character_at(std::string_view text, size_t at) {
  return decode(text, at).code;
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (size_t at = 0; at < text.size(); at += character_bytes(text, at)) {
    ++count;
  }
  return count;
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool is_printable(char32_t character) {
  if (character == ' ') {
    return true;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(character))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string_view strip(std::string_view text, Ends ends,
                       std::optional<std::string_view> characters) {
  if (ends != Ends::right) {
    while (!text.empty() && stripped(text.substr(0, character_bytes(text, 0)), characters)) {
      text.remove_prefix(character_bytes(text, 0));
    }
  }
  if (ends != Ends::left) {
    while (!text.empty() &&
           stripped(text.substr(character_before(text, text.size())), characters)) {
      text = text.substr(0, character_before(text, text.size()));
    }
  }
  return text;
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator,
                                    int64_t most) {
  std::vector<std::string_view> parts;
  for (size_t found = text.find(separator); found != std::string_view::npos && most != 0;
       found = text.find(separator)) {
    parts.push_back(text.substr(0, found));
    text.remove_prefix(found + separator.size());
    --most;
  }
  parts.push_back(text);
  return parts;
}

std::vector<std::string_view> split_right(std::string_view text, std::string_view separator,
                                          int64_t most) {
  std::vector<std::string_view> parts;
  for (size_t found = text.rfind(separator); found != std::string_view::npos && most != 0;
       found = text.rfind(separator)) {
    parts.push_back(text.substr(found + separator.size()));
    text = text.substr(0, found);
    --most;
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_space(std::string_view text, int64_t most) {
  std::vector<std::string_view> parts;
  for (text = strip(text, Ends::left); !text.empty(); text = strip(text, Ends::left)) {
    if (most-- == 0) {
      parts.push_back(text);
      break;
    }
    size_t end = 0;
    while (end < text.size() && !is_space(character_at(text, end))) {
      end += character_bytes(text, end);
    }
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  const auto ends_line = [](char32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
  };
  std::vector<std::string_view> lines;
  size_t first = 0;
  for (size_t at = 0; at < text.size();) {
    size_t next = at + character_bytes(text, at);
    if (ends_line(character_at(text, at))) {
      if (text[at] == '\r' && next < text.size() && text[next] == '\n') {
        ++next;
      }
      lines.push_back(text.substr(first, (keep_ends ? next : at) - first));
      first = next;
    }
    at = next;
  }
  if (first < text.size()) {
    lines.push_back(text.substr(first));
  }
  return lines;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t most) {
  std::string out;
  if (from.empty()) {  // Python puts `to` between all characters
    size_t at = 0;
    while (most-- != 0) {
      out += to;
      if (at == text.size()) {
        return out;
      }
      const size_t width = character_bytes(text, at);
      out += text.substr(at, width);
      at += width;
    }
    out += text.substr(at);
    return out;
  }
  for (size_t found = text.find(from); found != std::string_view::npos && most != 0;
       found = text.find(from)) {
    out += text.substr(0, found);
    out += to;
    text.remove_prefix(found + from.size());
    --most;
  }
  out += text;
  return out;
}

std::string to_lower(std::string_view text) {
  return map_case(text, [](char32_t) { return Case::lower; });
}

std::string to_upper(std::string_view text) {
  return map_case(text, [](char32_t) { return Case::upper; });
}

std::string capitalize(std::string_view text) {
  bool first = true;
  return map_case(text, [&](char32_t) {
    const Case wanted = first ? Case::title : Case::lower;
    first = false;
    return wanted;
  });
}

std::string title(std::string_view text) {
  bool inside = false;
  return map_case(text, [&](char32_t code) {
    const Case wanted = inside ? Case::lower : Case::title;
    inside = is_cased(code);
    return wanted;
  });
}

std::vector<size_t> slice_indices(int64_t length, std::optional<int64_t> start,
                                  std::optional<int64_t> stop, int64_t step) {
  // As PySlice_AdjustIndices: negative counts from the end, then clamp.
  const int64_t lowest = step < 0 ? -1 : 0;
  const int64_t highest = step < 0 ? length - 1 : length;
  const auto adjust = [&](int64_t index) {
    return index < 0 ? std::max(index + length, lowest) : std::min(index, highest);
  };
  const int64_t first = start ? adjust(*start) : (step < 0 ? highest : lowest);
  const int64_t last = stop ? adjust(*stop) : (step < 0 ? lowest : highest);
  std::vector<size_t> indices;
  // Steps beyond the length visit one element; clamping them keeps the sum from overflowing.
  const int64_t stride = std::clamp(step, -length - 1, length + 1);
  for (int64_t i = first; step < 0 ? i > last : i < last; i += stride) {
    indices.push_back(static_cast<size_t>(i));
  }
  return indices;
}

std::string pick_characters(std::string_view text, const std::vector<size_t>& indices) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); at += character_bytes(text, at)) {
    offsets.push_back(at);
  }
  std::string out;
  for (const size_t index : indices) {
    out += text.substr(offsets[index], character_bytes(text, offsets[index]));
  }
  return out;
}

}  // namespace flashloom::jinja
