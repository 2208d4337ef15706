#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

namespace flashloom {

/// Nesting that no file we read comes near; beyond it, recursive handling would be at risk.
inline constexpr int kMaxJsonDepth = 64;

/// Parses JSON from a file that nobody vouches for. Throws IoError naming `file` and the byte for
/// malformed text, invalid UTF-8, a name given twice in one object, and nesting beyond
/// kMaxJsonDepth.
nlohmann::json parse_strict_json(std::string_view text, std::string_view file);

}  // namespace flashloom
