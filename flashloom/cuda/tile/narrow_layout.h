#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/shared_layout.h"

// Tiles whose columns are no multiple of 64: panels of 16 columns, rows x 32 bytes, with the
// 32-byte swizzle.
// Source: PTX ISA, "Asynchronous warpgroup level matrix shared memory layout".

namespace flashloom::cuda {

inline constexpr uint32_t kNarrowColumns = 16;
inline constexpr uint32_t kNarrowRowBytes = 32;

/// Byte offset of element (row, column) in a tile of narrow panels of `rows` rows: chunk c of row r
/// lies at chunk c xor (r / 4 mod 2).
FLASHLOOM_TILE_FUNCTION constexpr uint32_t narrow_offset(uint32_t row, uint32_t column,
                                                         uint32_t rows) {
  const uint32_t chunk = (column % kNarrowColumns) / 8;
  return column / kNarrowColumns * rows * kNarrowRowBytes + row * kNarrowRowBytes +
         ((chunk ^ (row / 4 % 2)) * 16) + (column % 8) * 2;
}

/// MN-major operand in narrow panels: the next 16 columns are a panel further, the next 8 of the
/// reduced rows 256 bytes.
FLASHLOOM_TILE_FUNCTION constexpr uint64_t narrow_descriptor(uint32_t address, uint32_t rows) {
  constexpr uint64_t kSwizzle = uint64_t{3} << 62;
  return matrix_descriptor(address, rows * kNarrowRowBytes, 8 * kNarrowRowBytes) | kSwizzle;
}

/// Bytes to step k of such an operand.
FLASHLOOM_TILE_FUNCTION constexpr uint32_t narrow_step(uint32_t k) {
  return k * 16 * kNarrowRowBytes;
}

}  // namespace flashloom::cuda
