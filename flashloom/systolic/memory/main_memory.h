#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flashloom/systolic/numeric/float_format.h"

namespace flashloom::systolic {

/// Main memory's bytes, little-endian, from address 0. Addresses are checked by the engine.
class MainMemory {
 public:
  explicit MainMemory(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {}

  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

  std::span<std::byte> bytes() { return bytes_; }

  std::span<const std::byte> bytes() const { return bytes_; }

  uint32_t load(FloatFormat format, int64_t address) const {
    uint32_t bits = 0;
    for (int i = 0; i < format.width() / 8; ++i) {
      bits |= static_cast<uint32_t>(bytes_[static_cast<size_t>(address + i)]) << (8 * i);
    }
    return bits;
  }

  void store(FloatFormat format, int64_t address, uint32_t bits) {
    for (int i = 0; i < format.width() / 8; ++i) {
      bytes_[static_cast<size_t>(address + i)] = static_cast<std::byte>(bits >> (8 * i));
    }
  }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace flashloom::systolic
