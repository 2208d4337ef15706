#include "flashloom/text/json_value.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <limits>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

using jinja::Value;

Value convert(const simdjson::dom::element& element) {
  switch (element.type()) {
    case simdjson::dom::element_type::ARRAY: {
      std::vector<Value> items;
      for (const simdjson::dom::element item : simdjson::dom::array(element)) {
        items.push_back(convert(item));
      }
      return Value::list(std::move(items));
    }
    case simdjson::dom::element_type::OBJECT: {
      std::vector<std::pair<std::string, Value>> items;
      for (const simdjson::dom::key_value_pair item : simdjson::dom::object(element)) {
        items.emplace_back(item.key, convert(item.value));
      }
      return Value::dict(std::move(items));
    }
    case simdjson::dom::element_type::STRING:
      return Value(std::string_view(element));
    case simdjson::dom::element_type::INT64:
      return Value(int64_t{element});
    case simdjson::dom::element_type::UINT64:
      throw Error(fmt::format("the number {} does not fit 64 bits with a sign", uint64_t{element}));
    case simdjson::dom::element_type::DOUBLE:
      return Value(double{element});
    case simdjson::dom::element_type::BOOL:
      return Value(bool{element});
    default:
      return Value(jinja::None());
  }
}

std::string_view describe(simdjson::error_code code) {
  switch (code) {
    case simdjson::UTF8_ERROR:
      return "invalid UTF-8";
    case simdjson::EMPTY:
      return "expected a JSON value, got nothing";
    case simdjson::DEPTH_ERROR:
      return "JSON nested too deeply";
    case simdjson::UNCLOSED_STRING:
      return "invalid JSON: a string that never ends";
    case simdjson::UNESCAPED_CHARS:
      return "invalid JSON: a control character inside a string";
    case simdjson::STRING_ERROR:
      return "invalid JSON: a wrong escape in a string";
    case simdjson::NUMBER_ERROR:
      return "invalid JSON: a wrong or too large number";
    default:
      return "invalid JSON";
  }
}

}  // namespace

struct JsonParser::Implementation {
  simdjson::dom::parser parser;
};

static_assert(JsonParser::kPadding >= simdjson::SIMDJSON_PADDING);

JsonParser::JsonParser() : implementation_(std::make_unique<Implementation>()) {}

JsonParser::~JsonParser() = default;

Value JsonParser::parse_padded(std::string_view text) {
  if (text.size() > std::numeric_limits<uint32_t>::max() - simdjson::SIMDJSON_PADDING) {
    throw Error("JSON of more than 4 GB");
  }
  simdjson::dom::parser& parser = implementation_->parser;
  simdjson::error_code code = simdjson::SUCCESS;
  if (parser.capacity() < text.size() || parser.max_depth() != kMaxJsonDepth) {
    code = parser.allocate(std::max(text.size(), 2 * parser.capacity()), kMaxJsonDepth);
  }
  simdjson::dom::element element;
  if (code == simdjson::SUCCESS) {
    code = parser.parse(text.data(), text.size(), /*realloc_if_needed=*/false).get(element);
  }
  if (code != simdjson::SUCCESS) {
    throw Error(std::string(describe(code)));
  }
  return convert(element);
}

Value parse_json(std::string_view text) {
  const simdjson::padded_string padded(text);
  return JsonParser().parse_padded(std::string_view(padded));
}

}  // namespace flashloom
