#include "flashloom/core/error.h"

#include <fmt/format.h>

namespace flashloom {

InvalidArgument::InvalidArgument(std::string_view op, std::string_view argument,
                                 std::string_view expected, std::string_view actual)
    : Error(fmt::format("{}: {}: expected {}, got {}", op, argument, expected, actual)) {}

Unsupported::Unsupported(std::string_view op, std::string_view what)
    : Error(fmt::format("{}: not supported: {}", op, what)) {}

IoError::IoError(std::string_view file, std::string_view place, std::string_view what)
    : Error(place.empty() ? fmt::format("{}: {}", file, what)
                          : fmt::format("{}: {}: {}", file, place, what)) {}

}  // namespace flashloom
