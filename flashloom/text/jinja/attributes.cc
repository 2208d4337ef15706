#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "flashloom/text/jinja/characters.h"
#include "flashloom/text/jinja/functions.h"

namespace flashloom::jinja {
namespace {

// Python's methods, those too that call_method refuses: a missing name must be told from a method.
constexpr std::array kStringMethods = std::to_array<std::string_view>(
    {"capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
     "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
     "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
     "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
     "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
     "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
     "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
     "swapcase",     "title",       "translate", "upper",      "zfill"});
constexpr std::array kDictMethods =
    std::to_array<std::string_view>({"clear", "copy", "fromkeys", "get", "items", "keys", "pop",
                                     "popitem", "setdefault", "update", "values"});
constexpr std::array kListMethods =
    std::to_array<std::string_view>({"append", "clear", "copy", "count", "extend", "index",
                                     "insert", "pop", "remove", "reverse", "sort"});

template <size_t N>
bool is_one_of(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool has_method(const Value& object, std::string_view name) {
  return (object.string() != nullptr && is_one_of(kStringMethods, name)) ||
         (object.dict() != nullptr && is_one_of(kDictMethods, name)) ||
         (object.list() != nullptr && is_one_of(kListMethods, name)) ||
         (object.loop() != nullptr && (name == "cycle" || name == "changed"));
}

Value method(const Value& self, std::string_view name) {
  return std::make_shared<const Function>(Function{
      .name = std::string(name), .macro = nullptr, .self = std::make_shared<const Value>(self)});
}

Value missing(const Value& object, std::string_view name) {
  return Value::undefined(fmt::format("'{}' has no attribute '{}'", object.type_name(), name));
}

Value loop_attribute(const Value& object, std::string_view name) {
  const Loop& loop = *object.loop();
  const auto length = static_cast<int64_t>(loop.list->items.size());
  const auto item = [&](int64_t index) { return loop.list->items[static_cast<size_t>(index)]; };
  if (name == "first") {
    return loop.index == 0;
  }
  if (name == "last") {
    return loop.index == length - 1;
  }
  if (name == "index" || name == "index0") {
    return loop.index + (name == "index" ? 1 : 0);
  }
  if (name == "revindex" || name == "revindex0") {
    return length - loop.index - (name == "revindex" ? 0 : 1);
  }
  if (name == "length") {
    return length;
  }
  if (name == "depth" || name == "depth0") {
    return int64_t{name == "depth" ? 1 : 0};  // only recursive loops go deeper
  }
  if (name == "previtem") {
    return loop.index > 0 ? item(loop.index - 1) : Value::undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return loop.index < length - 1 ? item(loop.index + 1)
                                   : Value::undefined("there is no next item");
  }
  return missing(object, name);
}

std::optional<int64_t> bound(const Value& value) {
  if (value.is_undefined() || value.is_none()) {
    return std::nullopt;
  }
  return value.as_integer("a bound of a slice");
}

}  // namespace

Value get_attribute(const Value& object, std::string_view name) {
  require_defined(object);
  if (has_method(object, name)) {
    return method(object, name);
  }
  if (const Dict* dict = object.dict()) {
    const Value* found = dict->find(name);
    return found == nullptr ? missing(object, name) : *found;
  }
  if (const Namespace* space = object.name_space()) {
    for (const auto& [key, value] : space->items) {
      if (key == name) {
        return value;
      }
    }
  }
  return object.loop() != nullptr ? loop_attribute(object, name) : missing(object, name);
}

Value get_item(const Value& object, const Value& index, Budget& budget) {
  require_defined(object);
  if (index.string() != nullptr) {
    const Value* found = object.dict() != nullptr ? object.dict()->find(*index.string()) : nullptr;
    return found != nullptr ? *found : get_attribute(object, *index.string());
  }
  const bool whole = index.is_integer() || index.is_bool();
  const auto absent = [&] {
    return Value::undefined(fmt::format("'{}' has no such element", object.type_name()));
  };
  if (!whole || (object.list() == nullptr && object.string() == nullptr)) {
    return absent();
  }
  const std::string* text = object.string();
  if (text != nullptr) {
    budget.charge_text(text->size());
  }
  const auto length =
      static_cast<int64_t>(text != nullptr ? count_characters(*text) : object.list()->items.size());
  int64_t at = index.as_integer("an index");
  at += at < 0 ? length : 0;
  if (at < 0 || at >= length) {
    return absent();
  }
  return text != nullptr ? Value(pick_characters(*text, {static_cast<size_t>(at)}))
                         : object.list()->items[static_cast<size_t>(at)];
}

Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step,
                Budget& budget) {
  require_defined(object);
  const int64_t stride = bound(step).value_or(1);
  if (stride == 0) {
    throw ValueError("a slice with step 0");
  }
  if (const std::string* text = object.string()) {
    budget.charge_text(text->size());
    const auto length = static_cast<int64_t>(count_characters(*text));
    return Value(pick_characters(*text, slice_indices(length, bound(start), bound(stop), stride)));
  }
  const List* list = object.list();
  if (list == nullptr) {
    throw ValueError(fmt::format("a slice of {}", object.type_name()));
  }
  std::vector<Value> items;
  for (const size_t i :
       slice_indices(static_cast<int64_t>(list->items.size()), bound(start), bound(stop), stride)) {
    budget.charge(1);
    items.push_back(list->items[i]);
  }
  return Value::list(std::move(items), list->tuple);
}

}  // namespace flashloom::jinja
