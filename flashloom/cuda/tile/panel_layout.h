#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/shared_layout.h"

// Tiles in panels whose rows have 128, 64 or 32 bytes, each with the swizzle of that width. Rows of
// 96 columns are one and a half panels of 64 columns, or three of 32 without a place that is empty.
// Source: PTX ISA, "Asynchronous warpgroup level matrix shared memory layout", "Tensor maps".

namespace flashloom::cuda {

template <uint32_t kRowBytes_>
struct PanelLayout {
  static_assert(kRowBytes_ == 128 || kRowBytes_ == 64 || kRowBytes_ == 32);
  static constexpr uint32_t kRowBytes = kRowBytes_;
  static constexpr uint32_t kColumns = kRowBytes / 2;
  static constexpr uint32_t kSteps = kColumns / 16;  // of 16 columns, a product's

  /// Bytes of a panel of `rows` rows.
  static FLASHLOOM_TILE_FUNCTION constexpr uint32_t bytes(uint32_t rows) {
    return rows * kRowBytes;
  }

  /// Byte offset of element (row, column) in a tile of `rows` rows. The swizzle permutes the chunks
  /// of 16 bytes in a row by the number of its 128 bytes, which may be those of several rows.
  static FLASHLOOM_TILE_FUNCTION constexpr uint32_t offset(uint32_t row, uint32_t column,
                                                           uint32_t rows) {
    constexpr uint32_t kChunks = kRowBytes / 16;
    const uint32_t chunk = column % kColumns / 8;
    return column / kColumns * bytes(rows) + row * kRowBytes +
           ((chunk ^ (row / (8 / kChunks) % kChunks)) * 16) + column % 8 * 2;
  }

  /// Operand whose reduced dimension runs along a row (K-major).
  static FLASHLOOM_TILE_FUNCTION constexpr uint64_t k_major(uint32_t address) {
    return swizzled(matrix_descriptor(address, 16, 8 * kRowBytes));
  }

  /// Operand whose reduced dimension runs down the rows (MN-major): the next columns are a panel
  /// further, the next 8 of the reduced rows 8 rows of the panel.
  static FLASHLOOM_TILE_FUNCTION constexpr uint64_t mn_major(uint32_t address, uint32_t rows) {
    return swizzled(matrix_descriptor(address, bytes(rows), 8 * kRowBytes));
  }

  /// Bytes from the operand's start to step k (16 of the reduced dimension each) of a K-major tile.
  static FLASHLOOM_TILE_FUNCTION constexpr uint32_t k_major_step(uint32_t k, uint32_t rows) {
    return k / kSteps * bytes(rows) + k % kSteps * 32;
  }

  /// The same of an MN-major tile.
  static FLASHLOOM_TILE_FUNCTION constexpr uint32_t mn_major_step(uint32_t k) {
    return k * 16 * kRowBytes;
  }

 private:
  /// matrix_descriptor() with the swizzle of this width: 1, 2 and 3 are 128, 64 and 32 bytes.
  static FLASHLOOM_TILE_FUNCTION constexpr uint64_t swizzled(uint64_t descriptor) {
    constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
    return (descriptor & ((uint64_t{1} << 62) - 1)) | kSwizzle << 62;
  }
};

}  // namespace flashloom::cuda
