#pragma once

#include <string>
#include <string_view>

namespace flashloom {

/// All bytes at the end of an open file; throws IoError naming `path` (a full disk included).
void write_all(int descriptor, const std::string& path, std::string_view bytes);

}  // namespace flashloom
