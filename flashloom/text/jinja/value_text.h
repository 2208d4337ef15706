#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "flashloom/text/jinja/budget.h"
#include "flashloom/text/jinja/value.h"

namespace flashloom::jinja {

/// Python's str(): what `{{ value }}` prints; an undefined value prints nothing. Throws ValueError
/// for loops, functions and methods, whose text Python makes of an address.
std::string to_text(const Value& value, Budget& budget);

/// Python's repr().
std::string to_representation(const Value& value, Budget& budget);

/// Shortest digits that give the number back, as Python writes a float.
std::string float_text(double value);

struct JsonOptions {
  std::optional<std::string> indent;  ///< one level; without it everything stands on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};

/// json.dumps as Hugging Face's `tojson` calls it.
std::string to_json(const Value& value, const JsonOptions& options, Budget& budget);

}  // namespace flashloom::jinja
