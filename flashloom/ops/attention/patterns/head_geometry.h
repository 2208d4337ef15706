#pragma once

#include <cstdint>

#include "flashloom/ops/attention/patterns/tile_runs.h"

namespace flashloom {

/// A row at this position is padding: it sees nothing and nothing sees it. Ascending order puts
/// padding at the end of a bucket.
inline constexpr int32_t kPaddingPosition = 0x7fffffff;

/// Differences of indices stay below this; a window bound clamped to it is unbounded.
inline constexpr int64_t kMaxSequence = int64_t{1} << 30;

/// One side of the pairs: the rows that exist and their positions.
struct GeometrySide {
  int32_t count = 0;                        // rows that exist
  int64_t start = 0;                        // position of row 0, if positions are affine
  const int32_t* positions = nullptr;       // else the position of each row, ascending in a bucket
  const int32_t* bucket_offsets = nullptr;  // (buckets + 1)

  FLASHLOOM_HOST_DEVICE constexpr int64_t position(int64_t index) const {
    return positions != nullptr ? positions[index] : start + index;
  }
};

/// One direction of a block mask: for each block of the outer side, blocks of the inner side.
struct GeometryBlocks {
  const int32_t* offsets = nullptr;
  const int32_t* entries = nullptr;
  const int32_t* partial = nullptr;  // may be absent
  int32_t entry_count = 0;           // offsets are clamped to it
};

/// Everything that decides which pairs of one (sequence, query head) exist. `outer` is the side
/// whose tile is given, `inner` the side whose tiles are enumerated: queries and keys, or keys and
/// queries after transposed().
struct HeadGeometry {
  GeometrySide outer;
  GeometrySide inner;
  // Visible iff low <= position(inner) - position(outer) <= high.
  int64_t low = -kMaxSequence * 4;
  int64_t high = kMaxSequence * 4;
  int32_t buckets = 0;
  bool exclude_self = false;
  bool gated = false;
  bool transposed = false;
  int32_t outer_block = 0;  // rows or keys a block; 0 without a block mask
  int32_t inner_block = 0;
  GeometryBlocks blocks;
  GeometryBlocks transposed_blocks;
  const uint8_t* bits = nullptr;  // (partial blocks, block_rows, block_keys / 8)
};

/// The same pairs seen from the other side.
FLASHLOOM_HOST_DEVICE constexpr HeadGeometry transposed(const HeadGeometry& geometry) {
  HeadGeometry other = geometry;
  other.outer = geometry.inner;
  other.inner = geometry.outer;
  other.low = -geometry.high;
  other.high = -geometry.low;
  other.transposed = !geometry.transposed;
  other.outer_block = geometry.inner_block;
  other.inner_block = geometry.outer_block;
  other.blocks = geometry.transposed_blocks;
  other.transposed_blocks = geometry.blocks;
  return other;
}

/// True if neither side has explicit positions or buckets: visibility is low <= j - i + shift.
FLASHLOOM_HOST_DEVICE constexpr bool is_affine(const HeadGeometry& geometry) {
  return geometry.outer.positions == nullptr && geometry.inner.positions == nullptr &&
         geometry.buckets == 0;
}

/// The bucket that owns a row: the last one whose offset is not behind it.
FLASHLOOM_HOST_DEVICE constexpr int32_t bucket_of(const GeometrySide& side, int32_t buckets,
                                                  int64_t row) {
  int32_t low = 0;
  int32_t high = buckets;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (side.bucket_offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

/// Whether visibility, positions and buckets let the pair be (not the block mask).
FLASHLOOM_HOST_DEVICE constexpr bool positions_visible(const HeadGeometry& geometry, int64_t outer,
                                                       int64_t inner) {
  const int64_t a = geometry.outer.position(outer);
  const int64_t b = geometry.inner.position(inner);
  const bool padding = (geometry.outer.positions != nullptr && a == kPaddingPosition) ||
                       (geometry.inner.positions != nullptr && b == kPaddingPosition);
  if (padding || b - a < geometry.low || b - a > geometry.high ||
      (geometry.exclude_self && a == b)) {
    return false;
  }
  return geometry.buckets == 0 || bucket_of(geometry.outer, geometry.buckets, outer) ==
                                      bucket_of(geometry.inner, geometry.buckets, inner);
}

/// Whether bit (query, key) of a partial block is set; indices within the block.
FLASHLOOM_HOST_DEVICE constexpr bool block_bit(const HeadGeometry& geometry, int32_t partial,
                                               int64_t query, int64_t key) {
  const int64_t rows = geometry.transposed ? geometry.inner_block : geometry.outer_block;
  const int64_t keys = geometry.transposed ? geometry.outer_block : geometry.inner_block;
  const uint8_t byte = geometry.bits[(partial * rows + query) * (keys / 8) + key / 8];
  return ((byte >> (key % 8)) & 1) != 0;
}

}  // namespace flashloom
