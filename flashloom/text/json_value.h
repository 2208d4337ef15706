#pragma once

#include <memory>
#include <string_view>

#include "flashloom/text/jinja/value.h"

namespace flashloom {

/// JSON nested deeper than this is refused: chat messages, tool schemas included, stay far below.
inline constexpr size_t kMaxJsonDepth = 48;

/// A JSON text as a value. Throws Error saying what is wrong ("invalid UTF-8", …); the caller adds
/// file and place. Numbers must fit an int64 or a double.
jinja::Value parse_json(std::string_view text);

/// Parses many texts without allocating anew for each.
class JsonParser {
 public:
  /// The parser reads, but never uses, so many bytes behind a text.
  static constexpr size_t kPadding = 64;

  JsonParser();
  ~JsonParser();
  JsonParser(const JsonParser&) = delete;
  JsonParser& operator=(const JsonParser&) = delete;

  /// As parse_json. kPadding bytes behind `text` must be readable.
  jinja::Value parse_padded(std::string_view text);

 private:
  struct Implementation;

  std::unique_ptr<Implementation> implementation_;
};

}  // namespace flashloom
