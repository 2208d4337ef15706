#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "flashloom/json/json.h"

namespace flashloom {
namespace {

// Builds a value from the parser's events. Open lists and objects are kept apart from their parents
// until they end, so that growing vectors move nothing that is pointed to.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(std::string_view file) : file_(file) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }

  bool boolean(bool value) override { return add(value); }

  bool number_integer(int64_t value) override { return add(value); }

  bool number_unsigned(uint64_t value) override { return add(value); }

  bool number_float(double value, const std::string& /*text*/) override { return add(value); }

  bool string(std::string& value) override { return add(std::move(value)); }

  bool binary(binary_t& /*value*/) override { return false; }  // not in JSON texts

  bool start_object(size_t /*size*/) override { return open(Json::object()); }

  bool start_array(size_t /*size*/) override { return open(Json::array()); }

  bool end_object() override { return close(); }

  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    Open& object = open_.back();
    if (!object.names.insert(name).second) {
      throw IoError(file_, fmt::format("\"{}\"", name), "name given twice in one JSON object");
    }
    object.name = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::json::exception& error) override {
    constexpr int kOutOfRange = 406;
    if (error.id == kOutOfRange) {
      throw IoError(file_, "", "JSON holds a number beyond all limits");
    }
    throw IoError(file_, fmt::format("byte {}", position), "malformed JSON");
  }

 private:
  struct Open {
    Json value;
    std::unordered_set<std::string> names;  // of an object, so far
    std::string name;                       // of the member that comes next
  };

  bool add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().value.is_array()) {
      open_.back().value.push_back(std::move(value));
    } else {
      open_.back().value.append(std::move(open_.back().name), std::move(value));
    }
    return true;
  }

  bool open(Json value) {
    if (open_.size() >= kMaxJsonNesting) {
      throw IoError(file_, "", fmt::format("JSON is nested deeper than {}", kMaxJsonNesting));
    }
    open_.push_back({std::move(value), {}, {}});
    return true;
  }

  bool close() {
    Json value = std::move(open_.back().value);
    open_.pop_back();
    return add(std::move(value));
  }

  std::string_view file_;
  Json root_;
  std::vector<Open> open_;
};

}  // namespace

Json parse_strict_json(std::string_view text, std::string_view file) {
  Builder builder(file);
  nlohmann::json::sax_parse(text, &builder);
  return builder.take();
}

std::optional<size_t> json_fault(std::string_view text) {
  try {
    const auto parsed = nlohmann::json::parse(text);
    static_cast<void>(parsed);
    return std::nullopt;
  } catch (const nlohmann::json::parse_error& error) {
    return error.byte;
  } catch (
      const nlohmann::json::exception&) {  // a number beyond all limits: where, it does not say
    return std::nullopt;
  }
}

}  // namespace flashloom
