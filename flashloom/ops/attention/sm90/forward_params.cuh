#pragma once

#include <cstdint>

#include "flashloom/ops/attention/patterns/sequence_geometry.h"
#include "flashloom/ops/attention/sm90/schedule.cuh"

// What the host tells a forward kernel.

namespace flashloom::sm90 {

/// A block mask in compressed rows; block_rows 0: none. Blocks are multiples of the tile.
struct ForwardBlocks {
  int32_t block_rows, block_keys;
  GeometryTable offsets, entries, partial;
  int32_t entry_count;
  int32_t partial_count;
  int32_t line_words;   // 32-bit words of a block's row of bits
  const uint8_t* bits;  // (partial blocks, block_rows, block_keys / 8)
};

/// What only general kernels do to scores and probabilities.
struct ForwardRule {
  bool adjusts;                     // scores are more than products times a positive scale
  bool exclude_self;                // a query does not see the key at its own position
  float softcap;                    // natural units; 0: none
  float cap_inner, cap_outer;       // capped score = cap_outer tanh(cap_inner score), base 2,
  float curve[6];                   // or score sum_i curve[i] score^(2 i)
  float curve_reach;                // for scores up to this
  const float* slopes;              // ALiBi, or null
  float slope_unit;                 // from them to the scores' units
  int64_t slope_batch, slope_head;  // strides
  const uint64_t* seed;             // dropout, or null
  const uint64_t* offset;           // or null
  uint32_t drop_below;              // bits below it drop a pair
  float kept;                       // 1 / (1 - probability)
  ForwardBlocks blocks;
};

struct ForwardParams {
  Problem problem;
  void* out;  // 16-bit, strides in elements
  int64_t out_batch, out_head, out_row;
  float* lse;  // or null
  int64_t lse_batch, lse_head, lse_row;
  const float* sinks;     // (heads) or null
  float scale;            // of the products, natural
  float scale_log2;       // from scores to base 2: 1 if a rule has done that
  float inverse_scale;    // 1 / scale_log2
  float scale_natural;    // from scores to natural units
  int32_t value_columns;  // of out that exist
  int32_t tensor_keys;    // rows of k and v behind one another; the copy engine adds zeros there
  int32_t row_tiles;      // tiles of queries of the longest sequence
  int32_t tiles;          // of all heads and sequences, if all are as long as the longest
  int32_t section;       // heads that are worked on together, long tiles first; 0: a head at a time
  int32_t* counter;      // zero: blocks draw their tiles from it; null: every gridDim-th tile
  const int32_t* order;  // with a block mask: the tiles, long lists first; or null
  int32_t draw_at;       // with it: tiles of keys still to be loaded when the next one is drawn
  uint64_t out_hint;     // for the L2 cache
  ForwardRule rule;
};

}  // namespace flashloom::sm90
