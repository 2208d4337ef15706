#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace flashloom::jinja {

class Value;
struct Statement;

/// The name that was looked up in vain, for the error when it is used.
struct Undefined {
  std::shared_ptr<const std::string> name;
};

struct None {};

/// A Python list or tuple; immutable, as Hugging Face's sandbox makes lists.
struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
};

/// A Python dict with string keys, in order of insertion; immutable.
class Dict {
 public:
  /// A key that comes twice keeps its first place and its last value.
  explicit Dict(std::vector<std::pair<std::string, Value>> items);

  const std::vector<std::pair<std::string, Value>>& items() const { return items_; }

  /// Null if there is no such key.
  const Value* find(std::string_view key) const;

  int depth() const { return depth_; }

 private:
  std::vector<std::pair<std::string, Value>> items_;
  std::unordered_map<std::string_view, size_t> index_;  // empty while a search is cheaper
  int depth_ = 1;
};

/// namespace(...): the one thing that `set` can change from an inner scope.
struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};

/// The `loop` of a for statement.
struct Loop {
  std::shared_ptr<const List> list;
  int64_t index = 0;
};

/// Something that can be called: a macro, a global function, or a method of `self`.
struct Function {
  std::string name;
  const Statement* macro = nullptr;
  std::shared_ptr<const Value> self;
};

/// A Python value as templates see it. Containers hold plain data only (no namespace, loop or
/// function), so there are no cycles, and depth is limited, so that no destructor overflows the
/// stack. Copies share.
class Value {
 public:
  /// Deeper nesting is refused: no chat message or tool schema comes near.
  static constexpr int kMaxDepth = 64;

  using Storage = std::variant<Undefined, None, bool, int64_t, double,
                               std::shared_ptr<const std::string>, std::shared_ptr<const List>,
                               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                               std::shared_ptr<const Loop>, std::shared_ptr<const Function>>;

  Value() = default;  // undefined

  Value(None none) : storage_(none) {}

  Value(bool value) : storage_(value) {}

  Value(int64_t value) : storage_(value) {}

  Value(double value) : storage_(value) {}

  Value(std::string value) : storage_(std::make_shared<const std::string>(std::move(value))) {}

  Value(std::string_view value) : Value(std::string(value)) {}

  Value(const char* value) : Value(std::string(value)) {}

  Value(std::shared_ptr<Namespace> value) : storage_(std::move(value)) {}

  Value(std::shared_ptr<const Loop> value) : storage_(std::move(value)) {}

  Value(std::shared_ptr<const Function> value) : storage_(std::move(value)) {}

  Value(std::shared_ptr<const List> value) : storage_(std::move(value)) {}

  static Value undefined(std::string_view name);
  /// Throw ValueError for an item that is not plain data, or nesting beyond kMaxDepth.
  static Value list(std::vector<Value> items, bool tuple = false);
  static Value dict(std::vector<std::pair<std::string, Value>> items);

  bool is_undefined() const { return std::holds_alternative<Undefined>(storage_); }

  bool is_none() const { return std::holds_alternative<None>(storage_); }

  bool is_bool() const { return std::holds_alternative<bool>(storage_); }

  /// An int that is no bool.
  bool is_integer() const { return std::holds_alternative<int64_t>(storage_); }

  bool is_float() const { return std::holds_alternative<double>(storage_); }

  /// bool, int or float.
  bool is_number() const { return is_bool() || is_integer() || is_float(); }

  /// Null unless the value is one.
  const std::string* string() const { return get<std::shared_ptr<const std::string>>(); }

  const List* list() const { return get<std::shared_ptr<const List>>(); }

  const Dict* dict() const { return get<std::shared_ptr<const Dict>>(); }

  Namespace* name_space() const { return get<std::shared_ptr<Namespace>>(); }

  const Loop* loop() const { return get<std::shared_ptr<const Loop>>(); }

  const Function* function() const { return get<std::shared_ptr<const Function>>(); }

  const Storage& storage() const { return storage_; }

  /// None, or data that JSON can hold (a tuple too).
  bool is_plain() const;
  /// Python's bool().
  bool truth() const;
  /// A whole number from an int or bool; throws ValueError naming `what` otherwise.
  int64_t as_integer(std::string_view what) const;
  double as_double() const;
  /// What Python calls its type: "str", "int", "list", …
  std::string_view type_name() const;
  int depth() const;

 private:
  template <class Pointer>
  auto get() const -> decltype(std::declval<Pointer>().get()) {
    const auto* pointer = std::get_if<Pointer>(&storage_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  Storage storage_;
};

class Budget;

/// Python's ==.
bool equal(const Value& a, const Value& b, Budget& budget);
/// Negative, zero, positive; throws ValueError for values that Python does not order.
int compare(const Value& a, const Value& b, Budget& budget);
/// Python's `needle in haystack`.
bool contains(const Value& haystack, const Value& needle, Budget& budget);
/// The elements that a for statement visits: items, keys or characters; nothing of an undefined
/// value. Throws ValueError for what is not iterable.
std::vector<Value> iterate(const Value& value, Budget& budget);

}  // namespace flashloom::jinja
