#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace flashloom::systolic {

/// Rows of numbers as bits: the scratchpad (R elements a row) or the accumulation SRAM (C sums).
class Sram {
 public:
  Sram(int rows, int width) : width_(width), bits_(static_cast<size_t>(rows) * width) {}

  int width() const { return width_; }

  int row_count() const { return static_cast<int>(bits_.size()) / width_; }

  std::span<uint32_t> row(int64_t index) {
    return std::span(bits_).subspan(static_cast<size_t>(index * width_),
                                    static_cast<size_t>(width_));
  }

  std::span<const uint32_t> row(int64_t index) const {
    return std::span(bits_).subspan(static_cast<size_t>(index * width_),
                                    static_cast<size_t>(width_));
  }

  bool operator==(const Sram&) const = default;

 private:
  int width_;
  std::vector<uint32_t> bits_;
};

}  // namespace flashloom::systolic
