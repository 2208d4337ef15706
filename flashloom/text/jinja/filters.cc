#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "flashloom/text/jinja/characters.h"
#include "flashloom/text/jinja/functions.h"
#include "flashloom/text/jinja/value_text.h"

namespace flashloom::jinja {
namespace {

constexpr std::array kFilters = std::to_array<std::string_view>(
    {"abs", "capitalize", "count", "d", "default", "float", "indent", "int", "items", "length",
     "lower", "replace", "round", "safe", "string", "title", "tojson", "trim", "upper"});

Value json_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  const auto bound =
      arguments.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonOptions options{
      .indent = std::nullopt, .ensure_ascii = bound[0].truth(), .sort_keys = bound[3].truth()};
  if (bound[1].string() != nullptr) {
    options.indent = *bound[1].string();
  } else if (!bound[1].is_undefined() && !bound[1].is_none()) {
    const int64_t width = bound[1].as_integer("tojson: indent");
    options.indent = std::string(static_cast<size_t>(std::clamp<int64_t>(width, 0, 64)), ' ');
  }
  if (options.indent) {
    options.item_separator = std::string(1, ',');
  }
  if (const List* separators = bound[2].list()) {
    if (separators->items.size() != 2 || separators->items[0].string() == nullptr ||
        separators->items[1].string() == nullptr) {
      throw ValueError("tojson: separators are two strings");
    }
    options.item_separator = *separators->items[0].string();
    options.key_separator = *separators->items[1].string();
  }
  return Value(to_json(input, options, budget));
}

Value default_filter(const Value& input, const Arguments& arguments) {
  const auto bound = arguments.bind("default", {"default_value", "boolean"});
  const bool replaced = input.is_undefined() || (bound[1].truth() && !input.truth());
  if (!replaced) {
    return input;
  }
  return bound[0].is_undefined() && arguments.positional.empty() ? Value("") : bound[0];
}

// Jinja's own title, which differs from str.title: words begin behind - ( { [ < and white space.
std::string title_filter(std::string_view text) {
  std::string out;
  bool first = true;
  for (size_t at = 0; at < text.size();) {
    const size_t width = character_bytes(text, at);
    const std::string_view character = text.substr(at, width);
    out += first ? to_upper(character) : to_lower(character);
    first = std::string_view("-({[<").find(text[at]) != std::string_view::npos ||
            is_space(character_at(text, at));
    at += width;
  }
  return out;
}

Value indent_filter(std::string_view text, const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("indent", {"width", "first", "blank"});
  std::string indent = "    ";
  if (bound[0].string() != nullptr) {
    indent = *bound[0].string();
  } else if (!bound[0].is_undefined()) {
    const int64_t width = std::clamp<int64_t>(bound[0].as_integer("width"), 0, 4096);
    indent = std::string(static_cast<size_t>(width), ' ');
  }
  std::string ended(text);
  ended += '\n';  // so that a last newline gives an empty last line, as Jinja2 does
  std::string out;
  if (bound[1].truth()) {
    out = indent;
  }
  bool first = true;
  for (const std::string_view line : split_lines(ended, false)) {
    budget.charge_text(line.size() + indent.size());
    if (!first) {
      out += '\n';
      if (!line.empty() || bound[2].truth()) {
        out += indent;
      }
    }
    out += line;
    first = false;
  }
  return Value(std::move(out));
}

// The number that all of `digits` spells.
template <class Number>
std::optional<Number> number_in(std::string_view digits) {
  Number value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    return std::nullopt;
  }
  return value;
}

Value integer_filter(const Value& input, const Arguments& arguments) {
  const Value fallback = arguments.bind("int", {"default"})[0];
  Value otherwise = fallback.is_undefined() ? Value(int64_t{0}) : fallback;
  if (input.is_float()) {
    const double value = std::trunc(input.as_double());
    return std::fabs(value) < 0x1p63 ? Value(static_cast<int64_t>(value)) : otherwise;
  }
  if (input.is_number()) {
    return input.as_integer("int");
  }
  if (input.string() != nullptr) {
    std::string_view digits = strip(*input.string(), Ends::both);
    digits.remove_prefix(digits.starts_with('+') ? 1 : 0);
    if (const auto value = number_in<int64_t>(digits)) {
      return *value;
    }
    const auto real = number_in<double>(digits);  // int(float("1.5")) is Jinja2's second try
    if (real && std::fabs(*real) < 0x1p63) {
      return static_cast<int64_t>(std::trunc(*real));
    }
  }
  return otherwise;
}

Value float_filter(const Value& input, const Arguments& arguments) {
  const Value fallback = arguments.bind("float", {"default"})[0];
  if (input.is_number()) {
    return input.as_double();
  }
  if (input.string() != nullptr) {
    if (const auto value = number_in<double>(strip(*input.string(), Ends::both))) {
      return *value;
    }
  }
  return fallback.is_undefined() ? Value(0.0) : fallback;
}

Value round_filter(const Value& input, const Arguments& arguments) {
  const auto bound = arguments.bind("round", {"precision", "method"});
  const bool common =
      bound[1].is_undefined() || (bound[1].string() != nullptr && *bound[1].string() == "common");
  const int64_t precision = bound[0].is_undefined() ? 0 : bound[0].as_integer("precision");
  if (!common || precision != 0) {
    throw ValueError("round: only whole numbers by the common method are supported");
  }
  return input.is_float() ? Value(std::nearbyint(input.as_double())) : input;
}

Value length_filter(const Value& input) {
  if (const std::string* text = input.string()) {
    return static_cast<int64_t>(count_characters(*text));
  }
  if (const List* list = input.list()) {
    return static_cast<int64_t>(list->items.size());
  }
  if (const Dict* dict = input.dict()) {
    return static_cast<int64_t>(dict->items().size());
  }
  if (input.is_undefined()) {
    return int64_t{0};
  }
  throw ValueError(fmt::format("{} has no length", input.type_name()));
}

Value text_filter(std::string_view name, const Value& input, const Arguments& arguments,
                  Budget& budget) {
  const std::string text = to_text(input, budget);
  budget.charge_text(text.size());
  if (name == "trim") {
    const Value characters = arguments.bind("trim", {"chars"})[0];
    return Value(strip(text, Ends::both,
                       characters.string() == nullptr
                           ? std::nullopt
                           : std::optional<std::string_view>(*characters.string())));
  }
  if (name == "indent") {
    return indent_filter(text, arguments, budget);
  }
  if (name == "replace") {
    return call_method(Value(text), "replace", arguments, budget);
  }
  (void)arguments.bind(name, {});
  if (name == "title") {
    return Value(title_filter(text));
  }
  return name == "string" || name == "safe" ? Value(text)
                                            : call_method(Value(text), name, {}, budget);
}

}  // namespace

bool is_filter(std::string_view name) {
  return std::find(kFilters.begin(), kFilters.end(), name) != kFilters.end() ||
         is_sequence_filter(name);
}

Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments,
                   Budget& budget) {
  if (is_sequence_filter(name)) {
    return apply_sequence_filter(name, input, arguments, budget);
  }
  if (name == "tojson") {
    return json_filter(input, arguments, budget);
  }
  if (name == "default" || name == "d") {
    return default_filter(input, arguments);
  }
  if (name == "length" || name == "count") {
    return length_filter(input);
  }
  if (name == "items") {
    return input.is_undefined() ? Value::list({}) : call_method(input, "items", {}, budget);
  }
  if (name == "int") {
    return integer_filter(input, arguments);
  }
  if (name == "float") {
    return float_filter(input, arguments);
  }
  if (name == "round") {
    return round_filter(input, arguments);
  }
  if (name == "abs") {
    const Value zero(int64_t{0});
    return compare(input, zero, budget) < 0 ? apply_operator("-", input, nullptr, budget) : input;
  }
  if (is_filter(name)) {
    return text_filter(name, input, arguments, budget);
  }
  throw ValueError(fmt::format("the filter '{}' is not supported", name));
}

}  // namespace flashloom::jinja
