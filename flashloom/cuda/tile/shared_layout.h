#pragma once

#include <cstdint>

// How tiles of 16-bit elements lie in shared memory, as the copy engine writes them with its
// 128-byte swizzle and as wgmma reads them. A tile of `rows` x `columns` is cut into panels of 64
// columns; a panel is rows x 128 bytes, its 16-byte chunks permuted within each row.
// Source: PTX ISA, "Asynchronous warpgroup level matrix shared memory layout", "Tensor maps".

#ifdef __CUDACC__
#define FLASHLOOM_TILE_FUNCTION __host__ __device__
#else
#define FLASHLOOM_TILE_FUNCTION
#endif

namespace flashloom::cuda {

inline constexpr uint32_t kPanelColumns = 64;
inline constexpr uint32_t kPanelRowBytes = 128;
inline constexpr uint32_t kPanelAlignment = 1024;  // the swizzle repeats every 8 rows

/// Bytes of a panel of `rows` rows.
FLASHLOOM_TILE_FUNCTION constexpr uint32_t panel_bytes(uint32_t rows) {
  return rows * kPanelRowBytes;
}

/// Byte offset of element (row, column) in a tile of `rows` rows: chunk c of row r lies at chunk
/// c xor (r mod 8).
FLASHLOOM_TILE_FUNCTION constexpr uint32_t swizzled_offset(uint32_t row, uint32_t column,
                                                           uint32_t rows) {
  const uint32_t panel = column / kPanelColumns;
  const uint32_t chunk = (column % kPanelColumns) / 8;
  return panel * panel_bytes(rows) + row * kPanelRowBytes + ((chunk ^ (row % 8)) * 16) +
         (column % 8) * 2;
}

/// A wgmma matrix descriptor: address, leading and stride byte offsets in units of 16 bytes, and
/// the 128-byte swizzle.
FLASHLOOM_TILE_FUNCTION constexpr uint64_t matrix_descriptor(uint32_t address,
                                                             uint32_t leading_bytes,
                                                             uint32_t stride_bytes) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) |
         static_cast<uint64_t>((leading_bytes & 0x3ffffu) >> 4) << 16 |
         static_cast<uint64_t>((stride_bytes & 0x3ffffu) >> 4) << 32 | uint64_t{1} << 62;
}

/// Operand whose reduced dimension runs along a row (K-major): 8-row groups are 1024 bytes apart.
/// The leading offset has no meaning within a swizzled row.
FLASHLOOM_TILE_FUNCTION constexpr uint64_t k_major_descriptor(uint32_t address) {
  return matrix_descriptor(address, 16, 1024);
}

/// Operand whose reduced dimension runs down the rows (MN-major): the next 64 columns are a panel
/// further, the next 8 of the reduced rows 1024 bytes.
FLASHLOOM_TILE_FUNCTION constexpr uint64_t mn_major_descriptor(uint32_t address, uint32_t rows) {
  return matrix_descriptor(address, panel_bytes(rows), 1024);
}

/// The descriptor of an operand `bytes` further. Addresses end below 2^18, so the upper word is a
/// constant to the compiler.
FLASHLOOM_TILE_FUNCTION constexpr uint64_t moved_descriptor(uint64_t descriptor, uint32_t bytes) {
  return (descriptor & 0xffffffff00000000u) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

/// Bytes from the operand's start to step k (16 of the reduced dimension each) of a K-major tile.
FLASHLOOM_TILE_FUNCTION constexpr uint32_t k_major_step(uint32_t k, uint32_t rows) {
  return (k / 4) * panel_bytes(rows) + (k % 4) * 32;
}

/// The same of an MN-major tile.
FLASHLOOM_TILE_FUNCTION constexpr uint32_t mn_major_step(uint32_t k) {
  return k * 2048;
}

}  // namespace flashloom::cuda
