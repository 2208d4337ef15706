#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "flashloom/text/jinja/characters.h"
#include "flashloom/text/jinja/functions.h"
#include "flashloom/text/jinja/value_text.h"

namespace flashloom::jinja {
namespace {

const std::string& text_argument(const Value& value, std::string_view method) {
  if (value.string() == nullptr) {
    throw ValueError(fmt::format("str.{}: expected a string, got {}", method, value.type_name()));
  }
  return *value.string();
}

Value texts(const std::vector<std::string_view>& parts, Budget& budget) {
  budget.charge(kStringUnits * static_cast<int64_t>(parts.size()));
  return Value::list(std::vector<Value>(parts.begin(), parts.end()));
}

// startswith and endswith take one text or a tuple of them.
bool has_affix(std::string_view text, const Value& affix, std::string_view method) {
  const auto matches = [&](const Value& value) {
    const std::string& wanted = text_argument(value, method);
    return method == "startswith" ? text.starts_with(wanted) : text.ends_with(wanted);
  };
  if (affix.list() != nullptr && affix.list()->tuple) {
    return std::any_of(affix.list()->items.begin(), affix.list()->items.end(), matches);
  }
  return matches(affix);
}

Value split_method(std::string_view text, std::string_view method, const Arguments& arguments,
                   Budget& budget) {
  const auto bound = arguments.bind("str.split", {"sep", "maxsplit"});
  const int64_t most = bound[1].is_undefined() ? -1 : bound[1].as_integer("maxsplit");
  if (bound[0].is_undefined() || bound[0].is_none()) {
    if (method == "rsplit" && most >= 0) {
      throw ValueError("str.rsplit by white space with a limit is not supported");
    }
    return texts(split_space(text, most), budget);
  }
  const std::string& separator = text_argument(bound[0], method);
  if (separator.empty()) {
    throw ValueError("str.split: empty separator");
  }
  return texts(
      method == "split" ? split(text, separator, most) : split_right(text, separator, most),
      budget);
}

// The place of a part in characters, or -1.
Value find_method(std::string_view text, std::string_view method, const Arguments& arguments) {
  const auto bound = arguments.bind("str.find", {"sub"}, 1);
  const std::string& part = text_argument(bound[0], method);
  const size_t at = method == "find" || method == "index" ? text.find(part) : text.rfind(part);
  if (at == std::string_view::npos) {
    if (method == "index" || method == "rindex") {
      throw ValueError(fmt::format("str.{}: not found", method));
    }
    return int64_t{-1};
  }
  return static_cast<int64_t>(count_characters(text.substr(0, at)));
}

Value strip_method(std::string_view text, std::string_view method, const Arguments& arguments) {
  const auto bound = arguments.bind("str.strip", {"chars"});
  std::optional<std::string_view> characters;
  if (!bound[0].is_undefined() && !bound[0].is_none()) {
    characters = text_argument(bound[0], method);
  }
  return Value(strip(text,
                     method == "strip"    ? Ends::both
                     : method == "lstrip" ? Ends::left
                                          : Ends::right,
                     characters));
}

Value replace_method(std::string_view text, const Arguments& arguments, Budget& budget) {
  const auto bound = arguments.bind("str.replace", {"old", "new", "count"}, 2);
  const std::string& from = text_argument(bound[0], "replace");
  const std::string& to = text_argument(bound[1], "replace");
  // An upper bound of what comes out
  budget.charge_text((text.size() / std::max<size_t>(1, from.size()) + 1) * to.size());
  const int64_t most = bound[2].is_undefined() ? -1 : bound[2].as_integer("count");
  return Value(replace(text, from, to, most));
}

bool is_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

bool is_all_space(std::string_view text) {
  return !text.empty() && strip(text, Ends::left).empty();
}

// Methods that only look at the text or change its case; nullopt if `method` is another.
std::optional<Value> simple_string_method(std::string_view text, std::string_view method) {
  if (method == "upper") {
    return Value(to_upper(text));
  }
  if (method == "lower") {
    return Value(to_lower(text));
  }
  if (method == "title") {
    return Value(title(text));
  }
  if (method == "capitalize") {
    return Value(capitalize(text));
  }
  if (method == "isspace") {
    return Value(is_all_space(text));
  }
  if (method == "isdigit" || method == "isdecimal" || method == "isnumeric") {
    return Value(is_digits(text));
  }
  if (method == "isupper" || method == "islower") {
    const bool upper = method == "isupper";
    return Value((upper ? to_upper(text) : to_lower(text)) == text &&
                 (upper ? to_lower(text) : to_upper(text)) != text);
  }
  return std::nullopt;
}

Value string_method(std::string_view text, std::string_view method, const Arguments& arguments,
                    Budget& budget) {
  budget.charge_text(text.size());
  if (auto result = simple_string_method(text, method)) {
    (void)arguments.bind(method, {});
    return *std::move(result);
  }
  if (method == "strip" || method == "lstrip" || method == "rstrip") {
    return strip_method(text, method, arguments);
  }
  if (method == "split" || method == "rsplit") {
    return split_method(text, method, arguments, budget);
  }
  if (method == "startswith" || method == "endswith") {
    return has_affix(text, arguments.bind(method, {"prefix"}, 1)[0], method);
  }
  if (method == "replace") {
    return replace_method(text, arguments, budget);
  }
  if (method == "find" || method == "rfind" || method == "index" || method == "rindex") {
    return find_method(text, method, arguments);
  }
  if (method == "removeprefix" || method == "removesuffix") {
    const std::string affix = text_argument(arguments.bind(method, {"affix"}, 1)[0], method);
    if (method == "removeprefix") {
      return Value(text.substr(text.starts_with(affix) ? affix.size() : 0));
    }
    return Value(text.substr(0, text.size() - (text.ends_with(affix) ? affix.size() : 0)));
  }
  if (method == "splitlines") {
    return texts(split_lines(text, arguments.bind(method, {"keepends"})[0].truth()), budget);
  }
  if (method == "count") {
    const std::string part = text_argument(arguments.bind(method, {"sub"}, 1)[0], method);
    return part.empty() ? static_cast<int64_t>(count_characters(text) + 1)
                        : static_cast<int64_t>(split(text, part, -1).size() - 1);
  }
  if (method == "join") {
    Arguments separator{.positional = {Value(text)}, .keywords = {}};
    const Value items = arguments.bind(method, {"iterable"}, 1)[0];
    for (const Value& item : iterate(items, budget)) {
      (void)text_argument(item, method);
    }
    return apply_filter("join", items, separator, budget);
  }
  throw ValueError(fmt::format("the method str.{} is not supported", method));
}

Value dict_method(const Dict& dict, std::string_view method, const Arguments& arguments,
                  Budget& budget) {
  budget.charge(static_cast<int64_t>(dict.items().size()));
  if (method == "get") {
    const auto bound = arguments.bind("dict.get", {"key", "default"}, 1);
    const Value* found = bound[0].string() != nullptr ? dict.find(*bound[0].string()) : nullptr;
    return found != nullptr ? *found : (bound[1].is_undefined() ? Value(None()) : bound[1]);
  }
  if (method != "items" && method != "keys" && method != "values") {
    throw ValueError(fmt::format("the method dict.{} is not supported", method));
  }
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items()) {
    if (method == "items") {
      items.push_back(Value::list({Value(key), value}, true));
    } else if (method == "keys") {
      items.emplace_back(key);
    } else {
      items.push_back(value);
    }
  }
  (void)arguments.bind(method, {});
  return Value::list(std::move(items));
}

Value list_method(const List& list, std::string_view method, const Arguments& arguments,
                  Budget& budget) {
  if (method != "index" && method != "count") {
    throw ValueError(
        fmt::format("the method list.{} is not supported (lists cannot be changed)", method));
  }
  const Value wanted = arguments.bind(method, {"value"}, 1)[0];
  int64_t count = 0;
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (equal(list.items[i], wanted, budget)) {
      if (method == "index") {
        return static_cast<int64_t>(i);
      }
      ++count;
    }
  }
  if (method == "index") {
    throw ValueError("list.index: not found");
  }
  return count;
}

}  // namespace

Value call_method(const Value& self, std::string_view name, const Arguments& arguments,
                  Budget& budget) {
  if (self.string() != nullptr) {
    return string_method(*self.string(), name, arguments, budget);
  }
  if (self.dict() != nullptr) {
    return dict_method(*self.dict(), name, arguments, budget);
  }
  if (self.list() != nullptr) {
    return list_method(*self.list(), name, arguments, budget);
  }
  if (self.loop() != nullptr && name == "cycle" && !arguments.positional.empty()) {
    return arguments
        .positional[static_cast<size_t>(self.loop()->index) % arguments.positional.size()];
  }
  throw ValueError(fmt::format("the method {}.{} is not supported", self.type_name(), name));
}

}  // namespace flashloom::jinja
