#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace flashloom {

/// How rows of numbers in few bits are stored: in blocks that share a scale (the types of GGUF). A
/// row is a whole number of blocks.
struct BlockFormat {
  /// Larger groups than this do not exist; buffers of decoded numbers are sized by it.
  static constexpr int64_t kMaxGroup = 64;

  std::string_view name;
  int64_t block_elements = 0;
  int64_t block_bytes = 0;
  int64_t group_elements = 0;  // that can be decoded without the rest of their block
  /// Decodes elements [first, first + count) of a row, both whole groups, to float32.
  void (*decode)(const std::byte* row, int64_t first, int64_t count, float* out) = nullptr;
};

/// A matrix of such rows, in somebody else's memory. Absent if it has no format.
struct BlockMatrix {
  const std::byte* data = nullptr;
  const BlockFormat* format = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;

  explicit operator bool() const { return format != nullptr; }

  int64_t row_bytes() const { return columns / format->block_elements * format->block_bytes; }

  int64_t bytes() const { return rows * row_bytes(); }

  const std::byte* row(int64_t index) const { return data + index * row_bytes(); }
};

}  // namespace flashloom
