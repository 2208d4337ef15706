#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/shared_layout.h"

// Which element of a tile lies in which register of which thread: the maps that kernels write out
// as index arithmetic, as functions, for tests. Source: PTX ISA, "Matrix fragments for
// mma.m16n8k16", "Register fragments and shared memory matrix layouts" of wgmma, "stmatrix".

namespace flashloom::cuda {

struct TilePlace {
  uint32_t row, column;

  friend constexpr bool operator==(const TilePlace&, const TilePlace&) = default;
};

/// Element `index` of a thread's part of a 64 x N accumulator of wgmma, of a warpgroup's thread.
FLASHLOOM_TILE_FUNCTION constexpr TilePlace accumulator_place(uint32_t thread, uint32_t index) {
  return {thread / 32 * 16 + thread % 32 / 4 + index / 2 % 2 * 8,
          index / 4 * 8 + thread % 4 * 2 + index % 2};
}

/// The first of the two elements in register `word` (of 4) of a thread's part of a 64 x 16 operand
/// A of 16-bit elements in registers; the second is a column further.
FLASHLOOM_TILE_FUNCTION constexpr TilePlace operand_place(uint32_t thread, uint32_t word) {
  return {thread / 32 * 16 + thread % 32 / 4 + word % 2 * 8, word / 2 * 8 + thread % 4 * 2};
}

/// The row of 16 bytes whose address a lane gives to ldmatrix and stmatrix of four matrices, for a
/// 16 x 16 tile whose matrices are upper left, lower left, upper right, lower right.
FLASHLOOM_TILE_FUNCTION constexpr TilePlace matrix_row_place(uint32_t lane) {
  return {lane % 16, lane / 16 * 8};
}

}  // namespace flashloom::cuda
