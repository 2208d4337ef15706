#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashloom/text/jinja/budget.h"
#include "flashloom/text/jinja/value.h"

/// Filters, tests, methods, attributes and operators: all that maps values to values. Each throws
/// ValueError; the interpreter adds the line.
namespace flashloom::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;

  /// Values in the order of `parameters`; an absent one is undefined. Throws for too many, for
  /// unknown names, and if one of the first `required` is missing.
  std::vector<Value> bind(std::string_view function,
                          std::initializer_list<std::string_view> parameters,
                          size_t required = 0) const;
};

bool is_filter(std::string_view name);
Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments,
                   Budget& budget);

/// Filters over lists, in a file of their own; apply_filter calls it.
bool is_sequence_filter(std::string_view name);
Value apply_sequence_filter(std::string_view name, const Value& input, const Arguments& arguments,
                            Budget& budget);

bool is_test(std::string_view name);
bool apply_test(std::string_view name, const Value& input, std::span<const Value> arguments,
                Budget& budget);

/// object.name: a field, or a method as a Function; undefined if there is neither.
Value get_attribute(const Value& object, std::string_view name);
/// object[index], as Jinja2 has it: undefined where Python would raise.
Value get_item(const Value& object, const Value& index, Budget& budget);
/// object[start:stop:step]; undefined or None stands for an omitted part.
Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step,
                Budget& budget);
/// A method of a string, list, dict or loop, as get_attribute made it.
Value call_method(const Value& self, std::string_view name, const Arguments& arguments,
                  Budget& budget);

/// a + b and the like, "-" and "+" of one operand too (then b is null).
Value apply_operator(std::string_view symbol, const Value& a, const Value* b, Budget& budget);

/// Throws if `value` is undefined, saying what was looked up.
void require_defined(const Value& value);

}  // namespace flashloom::jinja
