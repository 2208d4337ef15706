#pragma once

#include <string_view>

namespace flashloom {

/// True if `text` is well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF
/// (Unicode 15, table 3-7).
bool is_utf8(std::string_view text);

}  // namespace flashloom
