#include "flashloom/json/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

namespace flashloom {

// Writes lists and objects; numbers and strings are written by nlohmann/json, so that what other
// programs read is what they would have written themselves.
class JsonWriter {
 public:
  JsonWriter(int indent, JsonText text) : indent_(indent), text_(text) {}

  std::string take() { return std::move(out_); }

  void write(const Json& json) {
    std::visit(
        [this](const auto& value) {
          using Value = std::decay_t<decltype(value)>;
          if constexpr (std::is_same_v<Value, std::vector<Json>>) {
            write_list(value, '[', ']', [this](const Json& element) { write(element); });
          } else if constexpr (std::is_same_v<Value, std::vector<JsonMember>>) {
            write_list(value, '{', '}', [this](const JsonMember& member) {
              write_scalar(member.name);
              out_ += indent_ >= 0 ? ": " : ":";
              write(member.value);
            });
          } else {
            write_scalar(value);
          }
        },
        json.value_);
  }

 private:
  template <class Value>
  void write_scalar(const Value& value) {
    using Handler = nlohmann::json::error_handler_t;
    try {
      out_ += nlohmann::json(value).dump(
          -1, ' ', text_ == JsonText::ascii,
          text_ == JsonText::replaced ? Handler::replace : Handler::strict);
    } catch (const nlohmann::json::exception&) {
      throw JsonError("text that is not UTF-8 cannot be written as JSON");
    }
  }

  template <class List, class WriteOne>
  void write_list(const List& list, char open, char close, WriteOne write_one) {
    out_ += open;
    ++depth_;
    for (size_t i = 0; i < list.size(); ++i) {
      out_ += i == 0 ? "" : ",";
      begin_line();
      write_one(list[i]);
    }
    --depth_;
    if (!list.empty()) {
      begin_line();
    }
    out_ += close;
  }

  void begin_line() {
    if (indent_ >= 0) {
      out_ += '\n';
      out_.append(static_cast<size_t>(indent_) * static_cast<size_t>(depth_), ' ');
    }
  }

  int indent_;
  JsonText text_;
  int depth_ = 0;
  std::string out_;
};

Json::Json() noexcept = default;

Json::Json(std::nullptr_t) noexcept {}

Json::Json(const char* text) : value_(std::string(text)) {}

Json::Json(std::string_view text) : value_(std::string(text)) {}

Json::Json(std::string text) : value_(std::move(text)) {}

Json::Json(std::initializer_list<JsonMember> members) : value_(std::vector<JsonMember>(members)) {}

Json::Json(Truth truth) noexcept : value_(truth.value) {}

Json::Json(Real real) noexcept : value_(real.value) {}

Json::Json(Whole whole) noexcept {
  if (whole.is_negative || whole.bits <= uint64_t{INT64_MAX}) {
    value_ = static_cast<int64_t>(whole.bits);
  } else {
    value_ = whole.bits;
  }
}

Json::Json(const Json&) = default;
Json::Json(Json&&) noexcept = default;
Json& Json::operator=(const Json&) = default;
Json& Json::operator=(Json&&) noexcept = default;
Json::~Json() = default;

Json Json::array(std::initializer_list<Json> elements) {
  Json json;
  json.value_ = std::vector<Json>(elements);
  return json;
}

Json Json::object() {
  return Json(std::initializer_list<JsonMember>());
}

bool Json::is_null() const {
  return std::holds_alternative<std::nullptr_t>(value_);
}

bool Json::is_boolean() const {
  return std::holds_alternative<bool>(value_);
}

bool Json::is_integer() const {
  return std::holds_alternative<int64_t>(value_) || std::holds_alternative<uint64_t>(value_);
}

bool Json::is_unsigned() const {
  const auto* whole = std::get_if<int64_t>(&value_);
  return std::holds_alternative<uint64_t>(value_) || (whole != nullptr && *whole >= 0);
}

bool Json::is_number() const {
  return is_integer() || std::holds_alternative<double>(value_);
}

bool Json::is_string() const {
  return std::holds_alternative<std::string>(value_);
}

bool Json::is_array() const {
  return std::holds_alternative<std::vector<Json>>(value_);
}

bool Json::is_object() const {
  return std::holds_alternative<std::vector<JsonMember>>(value_);
}

std::string_view Json::type_name() const {
  constexpr std::string_view kNames[] = {"null",   "boolean", "number", "number",
                                         "number", "string",  "array",  "object"};
  return kNames[value_.index()];
}

bool Json::boolean() const {
  if (const auto* value = std::get_if<bool>(&value_)) {
    return *value;
  }
  refuse("true or false");
}

int64_t Json::integer() const {
  if (const auto* value = std::get_if<int64_t>(&value_)) {
    return *value;
  }
  refuse("a whole number below 2^63");
}

uint64_t Json::unsigned_integer() const {
  if (is_unsigned()) {
    const auto* value = std::get_if<uint64_t>(&value_);
    return value != nullptr ? *value : static_cast<uint64_t>(std::get<int64_t>(value_));
  }
  refuse("a whole number, not below 0");
}

double Json::number() const {
  if (const auto* value = std::get_if<double>(&value_)) {
    return *value;
  }
  if (const auto* value = std::get_if<int64_t>(&value_)) {
    return static_cast<double>(*value);
  }
  if (const auto* value = std::get_if<uint64_t>(&value_)) {
    return static_cast<double>(*value);
  }
  refuse("a number");
}

const std::string& Json::string() const {
  if (const auto* value = std::get_if<std::string>(&value_)) {
    return *value;
  }
  refuse("a string");
}

const std::vector<Json>& Json::elements() const {
  if (const auto* value = std::get_if<std::vector<Json>>(&value_)) {
    return *value;
  }
  refuse("a list");
}

const std::vector<JsonMember>& Json::members() const {
  if (const auto* value = std::get_if<std::vector<JsonMember>>(&value_)) {
    return *value;
  }
  refuse("an object");
}

size_t Json::size() const {
  return is_array() ? elements().size() : is_object() ? members().size() : 0;
}

const Json* Json::find(std::string_view name) const {
  if (const auto* members = std::get_if<std::vector<JsonMember>>(&value_)) {
    const auto found = std::find_if(members->begin(), members->end(),
                                    [&](const JsonMember& member) { return member.name == name; });
    return found == members->end() ? nullptr : &found->value;
  }
  return nullptr;
}

const Json& Json::at(std::string_view name) const {
  members();  // throws if this is no object
  const Json* found = find(name);
  if (found == nullptr) {
    throw JsonError(fmt::format("'{}' is missing", name));
  }
  return *found;
}

Json& Json::operator[](std::string_view name) {
  if (const Json* found = find(name)) {
    return const_cast<Json&>(*found);  // of this object, which is not const
  }
  append(std::string(name), nullptr);
  return std::get<std::vector<JsonMember>>(value_).back().value;
}

void Json::append(std::string name, Json value) {
  if (is_null()) {
    value_ = std::vector<JsonMember>();
  }
  members();  // throws if this is no object
  std::get<std::vector<JsonMember>>(value_).push_back({std::move(name), std::move(value)});
}

void Json::erase(std::string_view name) {
  if (auto* members = std::get_if<std::vector<JsonMember>>(&value_)) {
    std::erase_if(*members, [&](const JsonMember& member) { return member.name == name; });
  }
}

void Json::push_back(Json element) {
  if (is_null()) {
    value_ = std::vector<Json>();
  }
  elements();  // throws if this is no list
  std::get<std::vector<Json>>(value_).push_back(std::move(element));
}

std::string Json::dump(int indent, JsonText text) const {
  JsonWriter writer(indent, text);
  writer.write(*this);
  return writer.take();
}

void Json::refuse(std::string_view expected) const {
  std::string text = dump(-1, JsonText::replaced);
  constexpr size_t kShown = 60;
  if (text.size() > kShown) {
    text = std::string(type_name());
  }
  throw JsonError(fmt::format("expected {}, got {}", expected, text));
}

bool operator==(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_integer() && b.is_integer() ? a.value_ == b.value_ : a.number() == b.number();
  }
  if (!a.is_object() || !b.is_object()) {
    return a.value_ == b.value_;
  }
  return a.size() == b.size() &&
         std::all_of(a.members().begin(), a.members().end(), [&](const JsonMember& member) {
           const Json* other = b.find(member.name);
           return other != nullptr && member.value == *other;
         });
}

}  // namespace flashloom
