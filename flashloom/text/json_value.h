#pragma once

#include <string_view>

#include "flashloom/text/jinja/value.h"

namespace flashloom {

/// JSON nested deeper than this is refused: chat messages, tool schemas included, stay far below.
inline constexpr size_t kMaxJsonDepth = 48;

/// A JSON text as a value. Throws Error saying what is wrong ("invalid UTF-8", …); the caller adds
/// file and place. Numbers must fit an int64 or a double.
jinja::Value parse_json(std::string_view text);

}  // namespace flashloom
