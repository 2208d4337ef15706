#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "flashloom/text/jinja/characters.h"
#include "flashloom/text/jinja/functions.h"
#include "flashloom/text/jinja/value_text.h"

namespace flashloom::jinja {
namespace {

constexpr std::array kFilters = std::to_array<std::string_view>(
    {"dictsort", "first", "join", "last", "list", "map", "max", "min", "reject", "rejectattr",
     "reverse", "select", "selectattr", "sort", "sum", "unique"});

// "a.b.0" of an object, as the `attribute` argument of several filters names it.
Value attribute_path(Value object, const Value& path, Budget& budget) {
  if (path.string() == nullptr) {
    return get_item(object, path, budget);
  }
  for (const std::string_view part : split(*path.string(), ".", -1)) {
    const bool number = !part.empty() && part.size() < 10 &&
                        part.find_first_not_of("0123456789") == std::string_view::npos;
    object = number ? get_item(object, Value(int64_t{std::stoll(std::string(part))}), budget)
                    : get_item(object, Value(part), budget);
  }
  return object;
}

// What sort, min, max and unique compare: lower case, unless asked otherwise.
Value sort_key(const Value& item, const Value& attribute, bool case_sensitive, Budget& budget) {
  Value value = attribute.is_undefined() || attribute.is_none()
                    ? item
                    : attribute_path(item, attribute, budget);
  if (value.string() == nullptr || case_sensitive) {
    return value;
  }
  budget.charge_text(value.string()->size());
  return Value(to_lower(*value.string()));
}

Value join_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("join", {"d", "attribute"});
  const std::string separator = to_text(bound[0], budget);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(input, budget)) {
    const Value value = bound[1].is_undefined() ? item : attribute_path(item, bound[1], budget);
    const std::string text = to_text(value, budget);
    budget.charge_text(text.size() + separator.size());
    out += first ? "" : separator;
    out += text;
    first = false;
  }
  return Value(std::move(out));
}

Value sort_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : iterate(input, budget)) {
    keyed.emplace_back(sort_key(item, bound[2], bound[1].truth(), budget), item);
  }
  const bool reverse = bound[0].truth();
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? compare(b.first, a.first, budget) < 0 : compare(a.first, b.first, budget) < 0;
  });
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (auto& [key, item] : keyed) {
    items.push_back(std::move(item));
  }
  return Value::list(std::move(items));
}

Value dictsort_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("dictsort", {"case_sensitive", "by", "reverse"});
  const bool by_value = bound[1].string() != nullptr && *bound[1].string() == "value";
  Arguments sort;
  sort.positional = {bound[2].truth(), bound[0].truth(), Value(int64_t{by_value ? 1 : 0})};
  return sort_filter(call_method(input, "items", {}, budget), sort, budget);
}

Value extreme_filter(const Value& input, const Arguments& arguments, bool greatest,
                     Budget& budget) {
  const auto bound = arguments.bind("min", {"case_sensitive", "attribute"});
  Value best = Value::undefined("no item of an empty sequence");
  Value best_key;
  for (const Value& item : iterate(input, budget)) {
    const Value key = sort_key(item, bound[1], bound[0].truth(), budget);
    const int order = best.is_undefined() ? 1 : compare(key, best_key, budget);
    if (best.is_undefined() || (greatest ? order > 0 : order < 0)) {
      best = item;
      best_key = key;
    }
  }
  return best;
}

Value unique_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("unique", {"case_sensitive", "attribute"});
  std::vector<Value> keys;
  std::vector<Value> items;
  for (const Value& item : iterate(input, budget)) {
    const Value key = sort_key(item, bound[1], bound[0].truth(), budget);
    if (std::none_of(keys.begin(), keys.end(),
                     [&](const Value& other) { return equal(key, other, budget); })) {
      keys.push_back(key);
      items.push_back(item);
    }
  }
  return Value::list(std::move(items));
}

Value sum_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("sum", {"attribute", "start"});
  Value total = bound[1].is_undefined() ? Value(int64_t{0}) : bound[1];
  for (const Value& item : iterate(input, budget)) {
    const Value value = bound[0].is_undefined() || bound[0].is_none()
                            ? item
                            : attribute_path(item, bound[0], budget);
    total = apply_operator("+", total, &value, budget);
  }
  return total;
}

// map(attribute=…) or map(filter, arguments…).
Value map_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  std::vector<Value> items;
  if (!arguments.keywords.empty()) {
    const auto bound = Arguments{{}, arguments.keywords}.bind("map", {"attribute", "default"}, 1);
    for (const Value& item : iterate(input, budget)) {
      const Value value = attribute_path(item, bound[0], budget);
      items.push_back(value.is_undefined() ? bound[1] : value);
    }
    return Value::list(std::move(items));
  }
  if (arguments.positional.empty() || arguments.positional[0].string() == nullptr) {
    throw ValueError("map: expected a filter or attribute=");
  }
  const Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, {}};
  for (const Value& item : iterate(input, budget)) {
    items.push_back(apply_filter(*arguments.positional[0].string(), item, rest, budget));
  }
  return Value::list(std::move(items));
}

// select, reject, selectattr, rejectattr: an attribute (for the latter two), a test, its arguments.
Value select_filter(std::string_view name, const Value& input, const Arguments& arguments,
                    Budget& budget) {
  const bool by_attribute = name.ends_with("attr");
  const bool wanted = name.starts_with("select");
  const std::vector<Value>& all = arguments.positional;
  if (!arguments.keywords.empty() || (by_attribute && all.empty())) {
    throw ValueError(
        fmt::format("{}: expected {}a test", name, by_attribute ? "an attribute and " : ""));
  }
  const size_t test = by_attribute ? 1 : 0;
  if (all.size() > test && all[test].string() == nullptr) {
    throw ValueError(fmt::format("{}: expected the name of a test", name));
  }
  std::vector<Value> items;
  for (const Value& item : iterate(input, budget)) {
    const Value value = by_attribute ? attribute_path(item, all[0], budget) : item;
    const bool passes = all.size() > test ? apply_test(*all[test].string(), value,
                                                       std::span(all).subspan(test + 1), budget)
                                          : value.truth();
    if (passes == wanted) {
      items.push_back(item);
    }
  }
  return Value::list(std::move(items));
}

Value end_filter(const Value& input, bool first, Budget& budget) {
  std::vector<Value> items = iterate(input, budget);
  if (items.empty()) {
    return Value::undefined("no item of an empty sequence");
  }
  return first ? items.front() : items.back();
}

Value reverse_filter(const Value& input, Budget& budget) {
  std::vector<Value> items = iterate(input, budget);
  std::reverse(items.begin(), items.end());
  Value reversed = Value::list(std::move(items));
  return input.string() == nullptr ? reversed : join_filter(reversed, {}, budget);
}

}  // namespace

bool is_sequence_filter(std::string_view name) {
  return std::find(kFilters.begin(), kFilters.end(), name) != kFilters.end();
}

Value apply_sequence_filter(std::string_view name, const Value& input, const Arguments& arguments,
                            Budget& budget) {
  if (name == "join") {
    return join_filter(input, arguments, budget);
  }
  if (name == "map") {
    return map_filter(input, arguments, budget);
  }
  if (name == "sort") {
    return sort_filter(input, arguments, budget);
  }
  if (name == "dictsort") {
    return dictsort_filter(input, arguments, budget);
  }
  if (name == "unique") {
    return unique_filter(input, arguments, budget);
  }
  if (name == "sum") {
    return sum_filter(input, arguments, budget);
  }
  if (name == "min" || name == "max") {
    return extreme_filter(input, arguments, name == "max", budget);
  }
  if (name == "first" || name == "last" || name == "list" || name == "reverse") {
    (void)arguments.bind(name, {});
    if (name == "list") {
      return Value::list(iterate(input, budget));
    }
    return name == "reverse" ? reverse_filter(input, budget)
                             : end_filter(input, name == "first", budget);
  }
  return select_filter(name, input, arguments, budget);
}

}  // namespace flashloom::jinja
