#include <fmt/format.h>

#include <array>
#include <limits>

#include "flashloom/text/jinja/evaluator.h"
#include "flashloom/text/jinja/value_text.h"

namespace flashloom::jinja {
namespace {

// Jinja2's sandbox has the same limit.
constexpr int64_t kMaxRange = 100000;

Value range(const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("range", {"start", "stop", "step"}, 1);
  const bool only_stop = bound[1].is_undefined();
  const int64_t start = only_stop ? 0 : bound[0].as_integer("range");
  const int64_t stop = bound[only_stop ? 0 : 1].as_integer("range");
  const int64_t step = bound[2].is_undefined() ? 1 : bound[2].as_integer("range");
  if (step == 0) {
    throw ValueError("range: step 0");
  }
  std::vector<Value> items;
  int64_t value = start;
  while (step > 0 ? value < stop : value > stop) {
    if (static_cast<int64_t>(items.size()) == kMaxRange) {
      throw ValueError(fmt::format("range: more than {} numbers", kMaxRange));
    }
    budget.charge(1);
    items.emplace_back(value);
    if (__builtin_add_overflow(value, step, &value)) {
      break;
    }
  }
  return Value::list(std::move(items));
}

std::string format_time(const std::string& format, const std::tm& now) {
  // A result of 0 characters says "too small" too, so a character is put behind and taken away.
  const std::string padded = format + " ";
  std::array<char, 1024> buffer;
  const size_t length = std::strftime(buffer.data(), buffer.size(), padded.c_str(), &now);
  if (length == 0) {
    throw ValueError("strftime_now: a result of more than 1023 bytes");
  }
  return std::string(buffer.data(), length - 1);
}

}  // namespace

void Evaluator::set_attribute(Namespace& space, std::string_view name, Value value) {
  if (!value.is_plain() && !value.is_undefined()) {
    throw ValueError(fmt::format("a {} inside a namespace is not supported", value.type_name()));
  }
  if (name.starts_with('_')) {
    throw ValueError("an attribute of a namespace cannot begin with an underscore");
  }
  for (auto& [known, stored] : space.items) {
    if (known == name) {
      stored = std::move(value);
      return;
    }
  }
  space.items.emplace_back(name, std::move(value));
}

Value Evaluator::call_global(std::string_view name, const Arguments& arguments) {
  if (name == "range") {
    return range(arguments, budget_);
  }
  if (name == "raise_exception") {
    throw ValueError(fmt::format("the template refuses the conversation: {}",
                                 to_text(arguments.bind(name, {"message"}, 1)[0], budget_)));
  }
  if (name == "strftime_now") {
    return Value(
        format_time(to_text(arguments.bind(name, {"format"}, 1)[0], budget_), options_.now));
  }
  std::vector<std::pair<std::string, Value>> items;
  if (arguments.positional.size() > 1 ||
      (arguments.positional.size() == 1 && arguments.positional[0].dict() == nullptr)) {
    throw ValueError(fmt::format("{}: expected at most one dict, and keywords", name));
  }
  if (!arguments.positional.empty()) {
    items = arguments.positional[0].dict()->items();
  }
  items.insert(items.end(), arguments.keywords.begin(), arguments.keywords.end());
  if (name == "dict") {
    return Value::dict(std::move(items));
  }
  auto space = std::make_shared<Namespace>();
  for (auto& [key, value] : items) {
    budget_.charge(1);
    set_attribute(*space, key, std::move(value));
  }
  return space;
}

}  // namespace flashloom::jinja
