#include "flashloom/text/jinja/value_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "flashloom/text/jinja/characters.h"

namespace flashloom::jinja {
namespace {

void append_string_representation(std::string& out, std::string_view text) {
  const bool double_quotes =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  out += quote;
  for (size_t at = 0; at < text.size();) {
    const size_t width = character_bytes(text, at);
    const char32_t code = character_at(text, at);
    if (text[at] == quote || text[at] == '\\') {
      out += '\\';
      out += text[at];
    } else if (code == '\n' || code == '\r' || code == '\t') {
      out += code == '\n' ? "\\n" : (code == '\r' ? "\\r" : "\\t");
    } else if (is_printable(code)) {
      out += text.substr(at, width);
    } else if (code < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(code));
    } else if (code < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(code));
    }
    at += width;
  }
  out += quote;
}

void append_representation(std::string& out, const Value& value, Budget& budget);

void append_items(std::string& out, const Dict& dict, Budget& budget) {
  out += '{';
  for (size_t i = 0; i < dict.items().size(); ++i) {
    out += i == 0 ? "" : ", ";
    append_string_representation(out, dict.items()[i].first);
    out += ": ";
    append_representation(out, dict.items()[i].second, budget);
  }
  out += '}';
}

void append_representation(std::string& out, const Value& value, Budget& budget) {
  const size_t before = out.size();
  if (value.string() != nullptr) {
    append_string_representation(out, *value.string());
  } else if (const List* list = value.list()) {
    out += list->tuple ? '(' : '[';
    for (size_t i = 0; i < list->items.size(); ++i) {
      out += i == 0 ? "" : ", ";
      append_representation(out, list->items[i], budget);
    }
    out += list->tuple && list->items.size() == 1 ? "," : "";
    out += list->tuple ? ')' : ']';
  } else if (const Dict* dict = value.dict()) {
    append_items(out, *dict, budget);
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else {
    out += to_text(value, budget);
  }
  budget.charge_text(out.size() - before);
}

void append_json_string(std::string& out, std::string_view text, bool ensure_ascii) {
  const auto append_unit = [&](uint32_t unit) { out += fmt::format("\\u{:04x}", unit); };
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const size_t width = character_bytes(text, at);
    const char32_t code = character_at(text, at);
    constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b";
    constexpr std::string_view kLetters = "\"\\nrtfb";
    const size_t escape = width == 1 ? kEscaped.find(text[at]) : std::string_view::npos;
    if (escape != std::string_view::npos) {
      out += '\\';
      out += kLetters[escape];
    } else if (code < 0x20 || (ensure_ascii && code > 0x7F && code < 0x10000)) {
      append_unit(static_cast<uint32_t>(code));
    } else if (ensure_ascii && code >= 0x10000) {
      append_unit(0xD800 + ((static_cast<uint32_t>(code) - 0x10000) >> 10));
      append_unit(0xDC00 + ((static_cast<uint32_t>(code) - 0x10000) & 0x3FF));
    } else {
      out += text.substr(at, width);
    }
    at += width;
  }
  out += '"';
}

class JsonWriter {
 public:
  JsonWriter(const JsonOptions& options, Budget& budget) : options_(options), budget_(budget) {}

  void write(const Value& value, int level) {
    const size_t before = out.size();
    if (value.string() != nullptr) {
      append_json_string(out, *value.string(), options_.ensure_ascii);
    } else if (const List* list = value.list()) {
      out += '[';
      for (const Value& item : list->items) {
        separate(&item == list->items.data(), level + 1);
        write(item, level + 1);
      }
      end(']', list->items.empty(), level);
    } else if (const Dict* dict = value.dict()) {
      write_dict(*dict, level);
    } else if (value.is_none()) {
      out += "null";
    } else if (value.is_bool()) {
      out += value.truth() ? "true" : "false";
    } else if (value.is_float() && !std::isfinite(value.as_double())) {
      out += std::isnan(value.as_double()) ? "NaN"
                                           : (value.as_double() > 0 ? "Infinity" : "-Infinity");
    } else if (value.is_number()) {
      out += to_text(value, budget_);
    } else {
      throw ValueError(fmt::format("tojson of {}", value.type_name()));
    }
    budget_.charge_text(out.size() - before);
  }

  std::string out;

 private:
  void write_dict(const Dict& dict, int level) {
    std::vector<const std::pair<std::string, Value>*> items;
    for (const auto& item : dict.items()) {
      items.push_back(&item);
    }
    if (options_.sort_keys) {
      std::sort(items.begin(), items.end(),
                [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    out += '{';
    for (const auto* item : items) {
      separate(item == items.front(), level + 1);
      append_json_string(out, item->first, options_.ensure_ascii);
      out += options_.key_separator;
      write(item->second, level + 1);
    }
    end('}', items.empty(), level);
  }

  void separate(bool first, int level) {
    if (!first) {
      out += options_.item_separator;
    }
    new_line(level);
  }

  void end(char bracket, bool empty, int level) {
    if (!empty) {
      new_line(level);
    }
    out += bracket;
  }

  void new_line(int level) {
    if (options_.indent) {
      out += '\n';
      for (int i = 0; i < level; ++i) {
        out += *options_.indent;
      }
    }
  }

  const JsonOptions& options_;
  Budget& budget_;
};

}  // namespace

std::string float_text(double value) {
  if (!std::isfinite(value)) {
    return std::isnan(value) ? "nan" : (value > 0 ? "inf" : "-inf");
  }
  // Python: scientific below 1e-4 and from 1e16, else fixed with at least one decimal.
  const double size = std::fabs(value);
  const bool scientific = size != 0 && (size < 1e-4 || size >= 1e16);
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed)
          .ptr;
  std::string text(buffer, end);
  if (!scientific && text.find('.') == std::string::npos) {
    text += ".0";
  }
  return text;
}

std::string to_text(const Value& value, Budget& budget) {
  if (const std::string* text = value.string()) {
    return *text;
  }
  if (value.is_undefined()) {
    return "";
  }
  if (value.is_none()) {
    return "None";
  }
  if (value.is_bool()) {
    return value.truth() ? "True" : "False";
  }
  if (value.is_integer()) {
    return fmt::format("{}", value.as_integer("int"));
  }
  if (value.is_float()) {
    return float_text(value.as_double());
  }
  if (!value.is_plain()) {
    throw ValueError(fmt::format("a {} cannot be printed", value.type_name()));
  }
  return to_representation(value, budget);
}

std::string to_representation(const Value& value, Budget& budget) {
  std::string out;
  append_representation(out, value, budget);
  return out;
}

std::string to_json(const Value& value, const JsonOptions& options, Budget& budget) {
  JsonWriter writer(options, budget);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace flashloom::jinja
