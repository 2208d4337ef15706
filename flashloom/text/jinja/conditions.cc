#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "flashloom/text/jinja/characters.h"
#include "flashloom/text/jinja/functions.h"
#include "flashloom/text/jinja/value_text.h"

namespace flashloom::jinja {
namespace {

constexpr std::array kTypeTests = std::to_array<std::string_view>(
    {"boolean", "callable", "defined", "even", "false", "float", "integer", "iterable", "lower",
     "mapping", "none", "number", "odd", "sequence", "string", "true", "undefined", "upper"});
constexpr std::array kComparisons = std::to_array<std::string_view>(
    {"==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt", "greaterthan",
     ">=", "ge", "in", "sameas", "divisibleby"});

bool is_identical(const Value& a, const Value& b, Budget& budget) {
  const bool simple = a.is_none() || a.is_bool() || a.is_integer() || a.string() != nullptr;
  return simple && a.storage().index() == b.storage().index() && equal(a, b, budget);
}

bool comparison(std::string_view name, const Value& a, const Value& b, Budget& budget) {
  if (name == "==" || name == "eq" || name == "equalto") {
    return equal(a, b, budget);
  }
  if (name == "!=" || name == "ne") {
    return !equal(a, b, budget);
  }
  if (name == "in") {
    return contains(b, a, budget);
  }
  if (name == "sameas") {
    return is_identical(a, b, budget);
  }
  if (name == "divisibleby") {
    return apply_operator("%", a, &b, budget).as_integer("divisibleby") == 0;
  }
  require_defined(a);
  require_defined(b);
  const int order = compare(a, b, budget);
  if (name == "<" || name == "lt" || name == "lessthan") {
    return order < 0;
  }
  if (name == "<=" || name == "le") {
    return order <= 0;
  }
  return name == ">" || name == "gt" || name == "greaterthan" ? order > 0 : order >= 0;
}

bool in_case(const Value& value, bool upper, Budget& budget) {
  const std::string text = to_text(value, budget);
  const std::string raised = to_upper(text);
  const std::string lowered = to_lower(text);
  return upper ? raised == text && lowered != text : lowered == text && raised != text;
}

}  // namespace

bool is_test(std::string_view name) {
  return std::find(kTypeTests.begin(), kTypeTests.end(), name) != kTypeTests.end() ||
         std::find(kComparisons.begin(), kComparisons.end(), name) != kComparisons.end();
}

bool apply_test(std::string_view name, const Value& input, std::span<const Value> arguments,
                Budget& budget) {
  const bool compares =
      std::find(kComparisons.begin(), kComparisons.end(), name) != kComparisons.end();
  if (!compares && !is_test(name)) {
    throw ValueError(fmt::format("the test '{}' is not supported", name));
  }
  if (arguments.size() != (compares ? 1 : 0)) {
    throw ValueError(fmt::format("the test '{}' takes {} argument, got {}", name,
                                 compares ? "one" : "no", arguments.size()));
  }
  if (compares) {
    return comparison(name, input, arguments[0], budget);
  }
  if (name == "defined" || name == "undefined") {
    return input.is_undefined() == (name == "undefined");
  }
  if (name == "none") {
    return input.is_none();
  }
  if (name == "string") {
    return input.string() != nullptr;
  }
  if (name == "mapping") {
    return input.dict() != nullptr;
  }
  if (name == "iterable" || name == "sequence") {
    return input.is_undefined() || input.string() != nullptr || input.list() != nullptr ||
           input.dict() != nullptr || (name == "iterable" && input.loop() != nullptr);
  }
  if (name == "number") {
    return input.is_number();
  }
  if (name == "integer") {
    return input.is_integer();
  }
  if (name == "float") {
    return input.is_float();
  }
  if (name == "boolean") {
    return input.is_bool();
  }
  if (name == "true" || name == "false") {
    return input.is_bool() && input.truth() == (name == "true");
  }
  if (name == "callable") {
    return input.function() != nullptr;
  }
  if (name == "even" || name == "odd") {
    const Value two(int64_t{2});
    return apply_operator("%", input, &two, budget).as_integer(name) == (name == "odd" ? 1 : 0);
  }
  return in_case(input, name == "upper", budget);
}

}  // namespace flashloom::jinja
