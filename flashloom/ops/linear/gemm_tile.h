#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/core/block_format.h"
#include "flashloom/core/dtype.h"

namespace flashloom {

/// A matrix of which one dimension, the depth, is summed over: (rows, depth). For a of a product
/// these are the rows of c, for b its columns. One of the strides is 1.
struct GemmOperand {
  const void* data;
  int64_t row_stride;
  int64_t depth_stride;
  DType dtype;                          // f32; b may be bf16
  const BlockFormat* format = nullptr;  // of b, if it is in blocks: these run along stride 1
  int64_t block_row_bytes = 0;

  /// Of b in blocks: a row of the stored matrix.
  const std::byte* block_row(int64_t index) const {
    return static_cast<const std::byte*>(data) + index * block_row_bytes;
  }

  template <class T>
  const T* at(int64_t row, int64_t depth) const {
    return static_cast<const T*>(data) + row * row_stride + depth * depth_stride;
  }
};

/// One product of the sum, alpha a b.
struct GemmProduct {
  GemmOperand a;
  GemmOperand b;
  int64_t depth;
  float alpha;
};

/// out = sum of products + beta in. `in` has a row stride of its own: 0 if each row is the same.
struct GemmOutput {
  float* out;
  int64_t out_stride;
  const float* in;  // not read if beta is 0
  int64_t in_stride;
  float beta;
};

/// Rows and columns of the output that one thread computes.
struct GemmTile {
  int64_t first_row;
  int64_t rows;
  int64_t first_column;
  int64_t columns;
};

/// Largest number of columns of a tile: what the packed block of b has room for.
inline constexpr int64_t kGemmMaxTileColumns = 192;

/// Computes a tile through packed blocks of the operands.
void gemm_tile(const GemmOutput& output, std::span<const GemmProduct> products,
               const GemmTile& tile);

/// The same for few rows, by dot products of unpacked rows; every depth_stride must be 1.
void gemm_tile_of_dots(const GemmOutput& output, std::span<const GemmProduct> products,
                       const GemmTile& tile);

}  // namespace flashloom
