#pragma once

#include <cstdint>

#include "flashloom/ops/attention/attention_dropout.h"
#include "flashloom/ops/attention/portable/problem.cuh"
#include "flashloom/ops/attention/portable/walk.cuh"

// Pairs of a tile: which exist, and what happens to their scores.

namespace flashloom::portable {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float infinity() {
  return __int_as_float(0x7f800000);
}

/// The rule of one (sequence, head), in registers only where it is used.
struct HeadScore {
  float scale, softcap, slope;
  const void* bias;
  DType bias_dtype;
  int64_t bias_row;
  bool dropout;
  uint64_t drop_below;
  float keep_factor;
  uint64_t seed, seed_offset;
  uint32_t sequence, head;
};

__device__ __forceinline__ HeadScore head_score(const ScoreRule& rule, int32_t sequence,
                                                int32_t head) {
  HeadScore score = {};
  score.scale = rule.scale;
  score.softcap = rule.softcap;
  score.slope = rule.slopes != nullptr
                    ? rule.slopes[sequence * rule.slope_batch + head * rule.slope_head]
                    : 0.0f;
  if (rule.bias != nullptr) {
    score.bias =
        static_cast<const char*>(rule.bias) +
        (sequence * rule.bias_batch + head * rule.bias_head) * element_bytes(rule.bias_dtype);
    score.bias_dtype = rule.bias_dtype;
    score.bias_row = rule.bias_row;
  }
  score.dropout = rule.dropout;
  score.drop_below = rule.drop_below;
  score.keep_factor = rule.keep_factor;
  if (rule.dropout) {
    score.seed = *rule.seed;
    score.seed_offset = rule.seed_offset != nullptr ? *rule.seed_offset : 0;
  }
  score.sequence = static_cast<uint32_t>(sequence);
  score.head = static_cast<uint32_t>(head);
  return score;
}

/// Final score of a raw product; `slope` becomes d(score) / d(scaled product).
__device__ __forceinline__ float final_score(const HeadScore& score, float product, int64_t query,
                                             int64_t key, int64_t distance, float& slope) {
  float x = product * score.scale;
  slope = 1;
  if (score.softcap != 0) {
    const float t = tanhf(x / score.softcap);
    x = score.softcap * t;
    slope = 1 - t * t;
  }
  x -= score.slope * static_cast<float>(distance < 0 ? -distance : distance);
  if (score.bias != nullptr) {
    x += load_float(score.bias, score.bias_dtype, query * score.bias_row + key);
  }
  return x;
}

/// 0 or 1 / (1 - probability).
__device__ __forceinline__ float dropout_factor(const HeadScore& score, int64_t query_position,
                                                int64_t key_position) {
  const uint32_t bits = attention_dropout_bits(score.seed, score.seed_offset, score.sequence,
                                               score.head, static_cast<uint32_t>(query_position),
                                               static_cast<uint32_t>(key_position));
  return bits < score.drop_below ? 0.0f : score.keep_factor;
}

__device__ __forceinline__ int64_t position_of(const GeometrySide& side, int64_t row,
                                               int64_t padding) {
  const int64_t position = side.position(row);
  return side.positions != nullptr && position == kPaddingPosition ? padding : position;
}

/// The pairs of one thread in one tile: rows g and g + 8 of its warp's 16 outer rows, columns
/// 8 n + 2 t and the next of the inner tile.
class ThreadPairs {
 public:
  /// The outer tile: rows from `first` on, of which `rows` belong to the tile.
  __device__ __forceinline__ ThreadPairs(const HeadGeometry& geometry, int32_t first, int32_t rows,
                                         uint32_t warp, uint32_t lane)
      : first_(first), column_(2 * (lane % 4)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t at = static_cast<int32_t>(warp * 16 + lane / 4) + 8 * r;
      row_[r] = at < rows && first + at < geometry.outer.count ? first + at : -1;
    }
  }

  /// Index of the outer row, -1 if it does not exist.
  __device__ __forceinline__ int32_t row(int r) const { return row_[r]; }

  __device__ __forceinline__ int32_t column(int n, int e) const { return 8 * n + column_ + e % 2; }

  /// Hides the pairs that an affine window, the end of the sequence or the end of the tile cuts:
  /// a range of columns for each row. `inner_rows` rows of the tile exist. `hidden` is -inf, or
  /// +inf for products that a negative scale still waits for.
  template <int kTiles>
  __device__ __forceinline__ void hide_outside(float (&scores)[kTiles][4],
                                               const HeadGeometry& geometry, int64_t inner_first,
                                               int32_t inner_rows, bool window,
                                               float hidden) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int32_t low = 0;
      int32_t high = inner_rows - 1;
      if (window) {
        const int64_t shift = geometry.outer.start - geometry.inner.start + row_[r] - inner_first;
        const int64_t least = geometry.low + shift;
        const int64_t most = geometry.high + shift;
        low = least > 0 ? static_cast<int32_t>(least < 1024 ? least : 1024) : 0;
        high = most < high ? static_cast<int32_t>(most > -1 ? most : -1) : high;
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          const int32_t c = column(n, e);
          scores[n][e] = c < low || c > high ? hidden : scores[n][e];
        }
      }
    }
  }

 private:
  int32_t first_;
  int32_t column_;
  int32_t row_[2];
};

/// One pair by its indices: everything that decides whether it exists, its positions. For tiles
/// whose flags name more than a window, and for rules that need positions.
struct Pair {
  bool visible;
  int64_t query, key;  // rows
  int64_t query_position, key_position;

  __device__ __forceinline__ Pair(const HeadGeometry& geometry, const Step& step,
                                  int32_t partial_count, int32_t outer, int64_t inner_first,
                                  int32_t inner_rows, int32_t column) {
    const int64_t inner = inner_first + column;
    visible = outer >= 0 && column < inner_rows;
    const int64_t a =
        outer >= 0 ? position_of(geometry.outer, outer, kOuterPadding) : kOuterPadding;
    const int64_t b = visible ? position_of(geometry.inner, inner, kInnerPadding) : kInnerPadding;
    query = geometry.transposed ? inner : outer;
    key = geometry.transposed ? outer : inner;
    query_position = geometry.transposed ? b : a;
    key_position = geometry.transposed ? a : b;
    if ((step.flags & (kRunPositions | kRunIndex)) != 0) {
      visible = visible && b - a >= geometry.low && b - a <= geometry.high &&
                !(geometry.exclude_self && a == b);
      if (geometry.buckets > 0 && visible) {
        visible = bucket_of(geometry.inner, geometry.buckets, inner) ==
                  bucket_of(geometry.outer, geometry.buckets, outer);
      }
    }
    if ((step.flags & kRunBlockBits) != 0 && visible) {
      const int32_t outer_in_block = outer % geometry.outer_block;
      const auto inner_in_block = static_cast<int32_t>(inner) % geometry.inner_block;
      visible =
          step.partial < partial_count &&
          block_bit(geometry, step.partial, geometry.transposed ? inner_in_block : outer_in_block,
                    geometry.transposed ? outer_in_block : inner_in_block);
    }
  }
};

/// Whether the pair exists, by itself: positions, and the block mask by a search of its row.
__device__ __forceinline__ bool pair_exists(const HeadGeometry& geometry, int32_t partial_count,
                                            int32_t query, int32_t key) {
  if (!positions_visible(geometry, query, key)) {
    return false;
  }
  if (geometry.outer_block == 0) {
    return true;
  }
  const GeometryBlocks& blocks = geometry.blocks;
  const int32_t block_row = query / geometry.outer_block;
  const int32_t column = key / geometry.inner_block;
  int32_t low = max(0, min(blocks.offsets[block_row], blocks.entry_count));
  int32_t high = max(0, min(blocks.offsets[block_row + 1], blocks.entry_count));
  const int32_t end = high;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (blocks.entries[middle] < column) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low >= end || blocks.entries[low] != column) {
    return false;
  }
  const int32_t partial = blocks.partial != nullptr ? blocks.partial[low] : -1;
  return partial < 0 ||
         (partial < partial_count &&
          block_bit(geometry, partial, query % geometry.outer_block, key % geometry.inner_block));
}

/// Whether the pairs of a tile need more than a window and the ends.
__device__ __forceinline__ bool needs_pairs(const ScoreRule& rule, const HeadGeometry& geometry,
                                            const Step& step) {
  return rule.general() || (step.flags & (kRunIndex | kRunBlockBits)) != 0;
}

}  // namespace flashloom::portable
