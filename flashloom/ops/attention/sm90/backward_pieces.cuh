#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_shape.cuh"

// Lists of a block mask where blocks stay: the visible queries of a tile of keys in pieces of 16,
// of whichever blocks they are, put together to whole tiles. Blocks of 128 queries are no multiples
// of 80, but of 16.

namespace flashloom::sm90 {

inline constexpr int32_t kPieceRows = 16;
inline constexpr int32_t kPlaceRows = 128;  // queries whose rows and sums are padded together
inline constexpr int32_t kPlacePieces = kPlaceRows / kPieceRows;
inline constexpr int32_t kFoundSteps = 4;  // steps that are found together

/// Pieces of a query head.
__device__ __forceinline__ int32_t head_pieces(const BackwardParams& params) {
  return params.query_tiles * kPlacePieces;
}

/// Entries of the list of a column of blocks of a query head: from the first to before the second.
__device__ __forceinline__ int2 column_entries(const BackwardBlocks& blocks, int32_t batch,
                                               int32_t head, int32_t column) {
  const int32_t* offsets = blocks.offsets.at(batch, head) + column;
  const int32_t first = min(max(offsets[0], 0), blocks.entry_count);
  return make_int2(first, max(first, min(offsets[1], blocks.entry_count)));
}

/// Tile `index` of the keys, with the number of its steps (`end`).
template <class Shape>
__device__ __forceinline__ BackwardWork work_of_lists(const BackwardParams& params, int32_t index) {
  const BackwardBlocks& blocks = params.blocks;
  const int32_t group = params.problem.heads_per_key;
  BackwardWork work;
  work.first = index;
  const BackwardOrder& order = params.order;
  int32_t head = order.tiles.quotient(index);
  int32_t tile = index - head * params.key_tiles;
  if (order.section > 0) {  // several heads side by side
    const int32_t section = min(order.blocks.quotient(index), order.sections - 1);
    const Divisor& width = section == order.sections - 1 ? order.last : order.width;
    const int32_t rest = index - section * static_cast<int32_t>(order.blocks.divisor);
    tile = width.quotient(rest);
    head = section * order.section + rest - tile * static_cast<int32_t>(width.divisor);
  }
  work.batch = order.heads.quotient(head);
  work.head = head - work.batch * static_cast<int32_t>(order.heads.divisor);
  work.key = tile * Shape::kKeys;
  work.sequence = sequence_of(params.problem, work.batch);
  int32_t entries = 0;
  for (int32_t h = work.head * group; h < (work.head + 1) * group; ++h) {
    const int2 own = column_entries(blocks, work.batch, h, work.key / blocks.keys);
    entries += own.y - own.x;
  }
  constexpr int32_t kPieces = Shape::kQueries / kPieceRows;
  work.begin = 0;
  work.end = (entries * blocks.query_tiles + kPieces - 1) / kPieces;
  return work;
}

/// Step `step` of a tile of keys. By any thread: blocks have all the same number of pieces, so that
/// nothing before needs to be known but how long the lists are.
template <class Shape, class Params>
__device__ __forceinline__ void find_pieces(const Params& params, const BackwardWork& work,
                                            int32_t step, BackwardPieces& pieces) {
  constexpr int32_t kPieces = Shape::kQueries / kPieceRows;
  const BackwardBlocks& blocks = params.blocks;
  const int32_t whole = blocks.query_tiles;  // pieces of a block
  int32_t entry = step * kPieces / whole;
  int32_t before = step * kPieces - entry * whole;  // pieces of this block
  int32_t head = work.head * params.problem.heads_per_key;
  const int32_t last = head + params.problem.heads_per_key - 1;
  int2 own = column_entries(blocks, work.batch, head, work.key / blocks.keys);
  int32_t left = kPieces;
#pragma unroll 1
  for (int32_t i = 0; i < 2; ++i) {
    while (entry >= own.y - own.x && head < last) {
      entry -= own.y - own.x;
      own = column_entries(blocks, work.batch, ++head, work.key / blocks.keys);
    }
    const bool any = left > 0 && entry < own.y - own.x;
    const int32_t count = any ? min(whole - before, left) : 0;
    int32_t row = 0;
    int32_t partial = -1;
    if (any) {
      int32_t at = own.x + entry;
      int32_t found;
      if constexpr (Shape::kTurns == BackwardTurns::always) {
        const int64_t list = work.batch * blocks.rank_batch + head * blocks.rank_head;
        const int4* turn = params.turns + list * blocks.entry_count + at;
        found = turn->x;
        pieces.rank[i] = turn->y + work.key % blocks.keys / Shape::kKeys;
        at = turn->z;
      } else {
        found = blocks.rows.at(work.batch, head)[at];
      }
      row = (min(max(found, 0), blocks.row_count - 1) * whole + before) * kPieceRows;
      if (blocks.partial.data != nullptr) {
        partial = min(blocks.partial.at(work.batch, head)[at], blocks.partial_count - 1);
      }
    }
    pieces.count[i] = count;
    pieces.head[i] = head;
    pieces.row[i] = row;
    pieces.partial[i] = partial;
    left -= count;
    before = 0;
    ++entry;
  }
}

/// How many steps are left, which is all that consumers need to know.
struct BackwardLeft : BackwardStep {
  int32_t left;

  __device__ __forceinline__ bool start(const BackwardParams&, const BackwardWork& work) {
    left = work.end;
    return left > 0;
  }

  __device__ __forceinline__ bool advance(const BackwardParams&, const BackwardWork&) {
    return --left > 0;
  }
};

/// Hides what blocks of bits hide of a tile of keys x queries; `key` is this thread's first key.
template <int kScores>
__device__ __forceinline__ void hide_in_pieces(float (&scores)[kScores],
                                               const BackwardHidden& hidden,
                                               const BackwardBlocks& blocks, int32_t key,
                                               uint32_t lane) {
  if (blocks.partial.data == nullptr || max(hidden.partial[0], hidden.partial[1]) < 0) {
    return;
  }
  const int32_t own_key = key % blocks.keys;
  const int32_t row_bytes = blocks.keys / 8;
#pragma unroll
  for (int piece = 0; piece < kScores / 8; ++piece) {
    const int32_t which = piece < hidden.count ? 0 : 1;
    const int32_t partial = hidden.partial[which];
    if (partial >= 0) {
      const int32_t row = hidden.row[which] + (piece - which * hidden.count) * kPieceRows;
      const int32_t query = row % blocks.queries + 2 * static_cast<int32_t>(lane % 4);
      const uint8_t* bits =
          blocks.bits + (int64_t{partial} * blocks.queries + query) * row_bytes + own_key / 16 * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // of 2 x 8 queries
        const uint8_t* place = bits + (i / 2 * 8 + i % 2) * row_bytes;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& score = scores[8 * piece + 4 * (i / 2) + 2 * half + i % 2];
          score = (place[half] >> (own_key % 8) & 1) != 0 ? score : -INFINITY;
        }
      }
    }
  }
}

/// Hides this thread's keys from `left` on: its keys are 0 and 8.
template <int kScores>
__device__ __forceinline__ void hide_keys_behind(float (&scores)[kScores], int32_t left) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    scores[i] = 8 * (i / 2 % 2) < left ? scores[i] : -INFINITY;
  }
}

}  // namespace flashloom::sm90
