#include "flashloom/io/strict_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>
#include <vector>

#include "flashloom/core/error.h"

namespace flashloom {

nlohmann::json parse_strict_json(std::string_view text, std::string_view file) {
  using nlohmann::json;
  std::vector<std::unordered_set<std::string>> names;  // of each open object; empty for an array
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (depth >= kMaxJsonDepth) {
          throw IoError(file, "", fmt::format("JSON is nested deeper than {}", kMaxJsonDepth));
        }
        names.emplace_back();
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        names.pop_back();
        break;
      case json::parse_event_t::key: {
        const auto& name = parsed.get_ref<const std::string&>();
        if (!names.back().insert(name).second) {
          throw IoError(file, fmt::format("\"{}\"", name), "name given twice in one JSON object");
        }
        break;
      }
      case json::parse_event_t::value:
        break;
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& error) {
    throw IoError(file, fmt::format("byte {}", error.byte), "malformed JSON");
  } catch (const json::exception&) {
    throw IoError(file, "", "JSON holds a number beyond all limits");
  }
}

}  // namespace flashloom
