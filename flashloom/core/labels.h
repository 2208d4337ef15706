#pragma once

#include <cstdint>

namespace flashloom {

/// A label that bears no loss, as in PyTorch.
inline constexpr int32_t kIgnoredLabel = -100;

}  // namespace flashloom
