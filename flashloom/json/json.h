#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "flashloom/core/error.h"

namespace flashloom {

struct JsonMember;

/// A value of another type than was asked for, a member that is missing, or a text that is not
/// UTF-8.
class JsonError : public Error {
 public:
  using Error::Error;
};

/// What `dump` does with characters beyond ASCII, and with bytes that are no UTF-8.
enum class JsonText : uint8_t {
  utf8,      // as they are; throws JsonError for what is no UTF-8
  replaced,  // as they are; U+FFFD stands for what is no UTF-8
  ascii,     // \uXXXX; throws JsonError for what is no UTF-8
};

/// A JSON value. Objects keep the order of their members and find them one by one: they are small.
/// The parser and the writer of numbers and strings are known to json.cc alone, since a source that
/// includes them compiles for seconds.
class Json {
 public:
  // Conversions are implicit so that literals read like JSON: {{"steps", 3}, {"files", files}} is
  // an object. A list of values is Json::array({1, "two"}) or a vector.
  Json() noexcept;
  Json(std::nullptr_t) noexcept;

  Json(std::same_as<bool> auto value) : Json(Truth{value}) {}

  Json(std::integral auto value)
    requires(!std::same_as<decltype(value), bool>)
      : Json(Whole{static_cast<uint64_t>(value), value < 0}) {}

  Json(std::floating_point auto value) : Json(Real{static_cast<double>(value)}) {}

  Json(const char* text);
  Json(std::string_view text);
  Json(std::string text);
  Json(std::initializer_list<JsonMember> members);

  template <class T>
  Json(const std::vector<T>& list) : Json(array()) {
    for (const T& value : list) {
      push_back(value);
    }
  }

  Json(const Json&);
  Json(Json&&) noexcept;
  Json& operator=(const Json&);
  Json& operator=(Json&&) noexcept;
  ~Json();

  static Json array(std::initializer_list<Json> elements = {});
  static Json object();

  bool is_null() const;
  bool is_boolean() const;
  bool is_integer() const;   // a whole number, written without point and exponent
  bool is_unsigned() const;  // the same, not below 0
  bool is_number() const;
  bool is_string() const;
  bool is_array() const;
  bool is_object() const;
  /// "null", "boolean", "number", "string", "array" or "object".
  std::string_view type_name() const;

  // The value as what it is; JsonError if it is something else.
  bool boolean() const;
  int64_t integer() const;
  uint64_t unsigned_integer() const;
  double number() const;
  const std::string& string() const;
  const std::vector<Json>& elements() const;
  const std::vector<JsonMember>& members() const;

  /// Elements of a list, members of an object; 0 of anything else.
  size_t size() const;

  /// Null where there is no such member, or no object.
  const Json* find(std::string_view name) const;

  bool contains(std::string_view name) const { return find(name) != nullptr; }

  /// JsonError where there is no such member.
  const Json& at(std::string_view name) const;

  /// The member, made if need be; null becomes an object.
  Json& operator[](std::string_view name);

  /// Adds a member whose name is known to be new, without a look at the others.
  void append(std::string name, Json value);

  void erase(std::string_view name);

  /// Null becomes a list.
  void push_back(Json element);

  /// On one line; or, with an indent, an element a line.
  std::string dump(int indent = -1, JsonText text = JsonText::utf8) const;

  /// Numbers by value, members in any order.
  friend bool operator==(const Json& a, const Json& b);

 private:
  friend class JsonWriter;

  // What the templates above hand to json.cc, where alone the variant's members are compiled.
  struct Truth {
    bool value;
  };

  struct Whole {
    uint64_t bits;
    bool is_negative;
  };

  struct Real {
    double value;
  };

  explicit Json(Truth truth) noexcept;
  explicit Json(Whole whole) noexcept;
  explicit Json(Real real) noexcept;

  [[noreturn]] void refuse(std::string_view expected) const;

  // Whole numbers are int64_t where they fit.
  std::variant<std::nullptr_t, bool, int64_t, uint64_t, double, std::string, std::vector<Json>,
               std::vector<JsonMember>>
      value_;
};

struct JsonMember {
  std::string name;
  Json value;

  friend bool operator==(const JsonMember&, const JsonMember&) = default;
};

/// Nesting that no file we read comes near; beyond it, recursive handling would be at risk.
inline constexpr int kMaxJsonNesting = 64;

/// Parses JSON from a file that nobody vouches for. Throws IoError naming `file` and the byte for
/// malformed text, invalid UTF-8, a name given twice in one object, and nesting beyond
/// kMaxJsonNesting.
Json parse_strict_json(std::string_view text, std::string_view file);

/// The byte, counted from 1, at which a text stops to be JSON; nothing if it is JSON throughout.
std::optional<size_t> json_fault(std::string_view text);

}  // namespace flashloom
