#include "flashloom/text/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/text/jinja/budget.h"
#include "flashloom/text/jinja/characters.h"

namespace flashloom::jinja {
namespace {

// Below this a linear search beats a hash table.
constexpr size_t kSearched = 16;

}  // namespace

Dict::Dict(std::vector<std::pair<std::string, Value>> items) {
  if (items.size() > kSearched) {
    std::unordered_map<std::string_view, size_t> first;
    std::vector<size_t> kept;
    for (size_t i = 0; i < items.size(); ++i) {
      const auto [place, added] = first.emplace(items[i].first, i);
      if (added) {
        kept.push_back(i);
      } else {
        items[place->second].second = items[i].second;
      }
    }
    for (const size_t i : kept) {
      items_.push_back(std::move(items[i]));
    }
    for (size_t i = 0; i < items_.size(); ++i) {
      index_.emplace(items_[i].first, i);
    }
  } else {
    for (auto& item : items) {
      const auto same = std::find_if(items_.begin(), items_.end(),
                                     [&](const auto& other) { return other.first == item.first; });
      if (same == items_.end()) {
        items_.push_back(std::move(item));
      } else {
        same->second = std::move(item.second);
      }
    }
  }
  for (const auto& [key, value] : items_) {
    depth_ = std::max(depth_, value.depth() + 1);
  }
}

const Value* Dict::find(std::string_view key) const {
  if (!index_.empty()) {
    const auto found = index_.find(key);
    return found == index_.end() ? nullptr : &items_[found->second].second;
  }
  for (const auto& [name, value] : items_) {
    if (name == key) {
      return &value;
    }
  }
  return nullptr;
}

Value Value::undefined(std::string_view name) {
  Value value;
  value.storage_ = Undefined{std::make_shared<const std::string>(name)};
  return value;
}

Value Value::list(std::vector<Value> items, bool tuple) {
  List list{.items = std::move(items), .tuple = tuple, .depth = 1};
  for (const Value& item : list.items) {
    if (!item.is_plain() && !item.is_undefined()) {
      throw ValueError(fmt::format("a {} inside a list is not supported", item.type_name()));
    }
    list.depth = std::max(list.depth, item.depth() + 1);
  }
  if (list.depth > kMaxDepth) {
    throw ValueError(fmt::format("values nested more than {} deep", kMaxDepth));
  }
  return std::make_shared<const List>(std::move(list));
}

Value Value::dict(std::vector<std::pair<std::string, Value>> items) {
  for (const auto& [key, item] : items) {
    if (!item.is_plain() && !item.is_undefined()) {
      throw ValueError(fmt::format("a {} inside a dict is not supported", item.type_name()));
    }
  }
  auto dict = std::make_shared<const Dict>(std::move(items));
  if (dict->depth() > kMaxDepth) {
    throw ValueError(fmt::format("values nested more than {} deep", kMaxDepth));
  }
  Value value;
  value.storage_ = std::move(dict);
  return value;
}

bool Value::is_plain() const {
  return !is_undefined() && name_space() == nullptr && loop() == nullptr && function() == nullptr;
}

bool Value::truth() const {
  if (is_undefined() || is_none()) {
    return false;
  }
  if (is_number()) {
    return as_double() != 0;
  }
  if (const std::string* text = string()) {
    return !text->empty();
  }
  if (const List* items = list()) {
    return !items->items.empty();
  }
  if (const Dict* items = dict()) {
    return !items->items().empty();
  }
  return true;
}

int64_t Value::as_integer(std::string_view what) const {
  if (const auto* value = std::get_if<int64_t>(&storage_)) {
    return *value;
  }
  if (const auto* value = std::get_if<bool>(&storage_)) {
    return *value ? 1 : 0;
  }
  throw ValueError(fmt::format("{}: expected an integer, got {}", what, type_name()));
}

double Value::as_double() const {
  if (const auto* value = std::get_if<double>(&storage_)) {
    return *value;
  }
  return static_cast<double>(as_integer("number"));
}

std::string_view Value::type_name() const {
  constexpr std::string_view kNames[] = {"undefined", "None", "bool",      "int",  "float",   "str",
                                         "list",      "dict", "namespace", "loop", "function"};
  if (list() != nullptr && list()->tuple) {
    return "tuple";
  }
  return kNames[storage_.index()];
}

int Value::depth() const {
  if (const List* items = list()) {
    return items->depth;
  }
  return dict() != nullptr ? dict()->depth() : 0;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.charge(1);
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.as_double() == b.as_double()
                                        : a.as_integer("number") == b.as_integer("number");
  }
  if (a.storage().index() != b.storage().index()) {
    return false;
  }
  if (a.string() != nullptr) {
    budget.charge_text(a.string()->size());
    return *a.string() == *b.string();
  }
  if (a.list() != nullptr) {
    const auto& left = a.list()->items;
    const auto& right = b.list()->items;
    return a.list()->tuple == b.list()->tuple && left.size() == right.size() &&
           std::equal(left.begin(), left.end(), right.begin(),
                      [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  }
  if (a.dict() != nullptr) {
    const auto& left = a.dict()->items();
    return left.size() == b.dict()->items().size() &&
           std::all_of(left.begin(), left.end(), [&](const auto& item) {
             const Value* other = b.dict()->find(item.first);
             return other != nullptr && equal(item.second, *other, budget);
           });
  }
  return a.is_undefined() || a.is_none() || a.name_space() == b.name_space();
}

int compare(const Value& a, const Value& b, Budget& budget) {
  budget.charge(1);
  const auto order = [](const auto& x, const auto& y) { return x < y ? -1 : (y < x ? 1 : 0); };
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? order(a.as_double(), b.as_double())
                                        : order(a.as_integer("number"), b.as_integer("number"));
  }
  if (a.string() != nullptr && b.string() != nullptr) {
    budget.charge_text(std::min(a.string()->size(), b.string()->size()));
    return order(*a.string(), *b.string());  // bytes of UTF-8 sort as code points do
  }
  if (a.list() != nullptr && b.list() != nullptr && a.list()->tuple == b.list()->tuple) {
    const auto& left = a.list()->items;
    const auto& right = b.list()->items;
    for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
      if (!equal(left[i], right[i], budget)) {
        return compare(left[i], right[i], budget);
      }
    }
    return order(left.size(), right.size());
  }
  throw ValueError(fmt::format("cannot order {} and {}", a.type_name(), b.type_name()));
}

bool contains(const Value& haystack, const Value& needle, Budget& budget) {
  if (const std::string* text = haystack.string()) {
    if (needle.string() == nullptr) {
      throw ValueError(
          fmt::format("`in` a string needs a string on its left, got {}", needle.type_name()));
    }
    budget.charge_text(text->size());
    return text->find(*needle.string()) != std::string::npos;
  }
  if (const Dict* dict = haystack.dict()) {
    return needle.string() != nullptr && dict->find(*needle.string()) != nullptr;
  }
  if (const List* list = haystack.list()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& item) { return equal(item, needle, budget); });
  }
  if (haystack.is_undefined()) {
    return false;
  }
  throw ValueError(fmt::format("`in` cannot look into {}", haystack.type_name()));
}

std::vector<Value> iterate(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (const List* list = value.list()) {
    budget.charge(static_cast<int64_t>(list->items.size()));
    items = list->items;
  } else if (const Dict* dict = value.dict()) {
    budget.charge(static_cast<int64_t>(dict->items().size()));
    for (const auto& [key, item] : dict->items()) {
      items.emplace_back(key);
    }
  } else if (const std::string* text = value.string()) {
    budget.charge(kStringUnits * static_cast<int64_t>(text->size()));
    for (size_t at = 0; at < text->size();) {
      const size_t width = character_bytes(*text, at);
      items.emplace_back(std::string_view(*text).substr(at, width));
      at += width;
    }
  } else if (!value.is_undefined()) {
    throw ValueError(fmt::format("{} is not iterable", value.type_name()));
  }
  return items;
}

}  // namespace flashloom::jinja
