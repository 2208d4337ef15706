#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/attention_rows.h"
#include "flashloom/ops/attention/patterns/sequence_geometry.h"

namespace flashloom {

/// Depth (head and value dimensions) is padded to groups of one cache line.
inline constexpr int64_t kDepthGroup = 16;
/// A multiple of every target's register tile; rows of scratch are padded to it.
inline constexpr int64_t kMaxTileRows = 24;

constexpr int64_t padded_depth(int64_t depth) {
  return (depth + kDepthGroup - 1) / kDepthGroup * kDepthGroup;
}

/// Elements of a row that are converted at a time on the stack.
inline constexpr int64_t kRowPiece = 256;

/// Rows of a tile of scratch.
constexpr int64_t padded_rows(int64_t rows) {
  return (rows + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows;
}

/// Rows of one head of one sequence in the caller's memory, through pages if there are any.
struct CpuRows {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes
  DType dtype = DType::f32;
  const int32_t* pages = nullptr;
  int64_t page_size = 1;
  int64_t page_stride = 0;         // bytes
  const int32_t* index = nullptr;  // row of the memory for each row; -1: none

  int64_t element_bytes() const { return static_cast<int64_t>(dtype_bytes(dtype)); }

  /// Null for a row that is not there.
  const std::byte* row(int64_t i) const {
    if (index != nullptr) {
      return index[i] < 0 ? nullptr : data + index[i] * stride;
    }
    return pages == nullptr ? data + i * stride
                            : data + pages[i / page_size] * page_stride + i % page_size * stride;
  }
};

inline CpuRows cpu_rows(const ConstTensorView& view, bool packed, int64_t sequence, int64_t head,
                        int64_t first) {
  const ConstTensorView rows = attention_head_rows(view, packed, sequence, head, first);
  return {static_cast<const std::byte*>(rows.data),
          rows.stride(0) * static_cast<int64_t>(dtype_bytes(view.dtype)),
          view.dtype,
          nullptr,
          1,
          0,
          nullptr};
}

inline CpuRows cpu_key_rows(const ConstTensorView& view, const AttentionSequences& sequences,
                            int64_t sequence, int64_t head, int64_t first) {
  if (!sequences.page_table) {
    return cpu_rows(view, static_cast<bool>(sequences.cu_key), sequence, head, first);
  }
  const auto bytes = static_cast<int64_t>(dtype_bytes(view.dtype));
  const ConstTensorView rows = view.select(1, head);
  return {static_cast<const std::byte*>(rows.data),
          rows.stride(1) * bytes,
          view.dtype,
          static_cast<const int32_t*>(sequences.page_table.data) +
              sequence * sequences.page_table.stride(0),
          sequences.page_size,
          rows.stride(0) * bytes,
          nullptr};
}

/// Whether the product of two tensors' rows can be formed from pairs of bf16 as they are stored.
inline bool stored_as_pairs(const ConstTensorView& a, const ConstTensorView& b) {
  return a.dtype == DType::bf16 && b.dtype == DType::bf16 && a.dim(-1) % 2 == 0;
}

/// Rows of bf16 as rows of half as many f32, each the bits of a pair.
inline CpuRows as_pairs(CpuRows rows) {
  rows.dtype = DType::f32;
  return rows;
}

/// A mutable row pointer of (rows, width) memory.
inline std::byte* mutable_row(const TensorView& rows, int64_t index) {
  return static_cast<std::byte*>(rows.data) +
         index * rows.stride(0) * static_cast<int64_t>(dtype_bytes(rows.dtype));
}

/// The largest divisor of a block's side that is at most `limit`; `limit` itself without blocks.
constexpr int32_t tile_side(int64_t block, int64_t limit) {
  int64_t side = limit;
  while (block > 0 && block % side != 0) {
    --side;
  }
  return static_cast<int32_t>(side);
}

/// Hands out pieces of a buffer of floats, each at a multiple of 64 bytes; counts with null.
class FloatArena {
 public:
  explicit FloatArena(float* data) : data_(data) {}

  float* take(int64_t count) {
    float* piece = data_ == nullptr ? nullptr : data_ + used_;
    used_ += (count + 15) / 16 * 16;
    return piece;
  }

  int64_t used() const { return used_; }

 private:
  float* data_;
  int64_t used_ = 0;
};

}  // namespace flashloom
