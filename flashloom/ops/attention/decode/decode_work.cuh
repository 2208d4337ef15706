#pragma once

#include "flashloom/ops/attention/decode/decode_params.cuh"

namespace flashloom::decode {

// The work of a launch is one line of tiles of keys: units (sequence, key-value head, tile of rows)
// one behind the other, each as long as the tiles of keys that its rows see. Block n of N owns the
// n-th of N equal stretches, so blocks end together whatever the lengths are. A unit that lies in
// several stretches is joined by the last of its blocks to arrive. Places on the line fit 32 bits;
// the host refuses longer ones.

/// Keys [first, last) that some row of a tile sees.
struct Span {
  int32_t first, last;
  bool stored;  // the tile has rows in the tensors (padding, perhaps)
};

__device__ __forceinline__ int32_t clamp_key(int64_t key, int32_t keys) {
  return static_cast<int32_t>(min(max(key, int64_t{0}), int64_t{keys}));
}

/// Position of query 0 less position of key 0.
__device__ __forceinline__ int64_t shift_of(const GeometrySource& source,
                                            const SequenceRows& rows) {
  return source.has_offset ? source.offset : int64_t{rows.keys} - int64_t{rows.queries};
}

__device__ __forceinline__ int32_t first_key(const GeometrySource& source, int64_t position,
                                             int32_t keys) {
  return source.left < 0 ? 0 : clamp_key(position - source.left, keys);
}

__device__ __forceinline__ int32_t last_key(const GeometrySource& source, int64_t position,
                                            int32_t keys) {
  return source.right < 0 ? keys : clamp_key(position + source.right + 1, keys);
}

template <int kRows>
__device__ __forceinline__ Span span_of(const Params& params, const SequenceRows& rows,
                                        int32_t tile) {
  const int32_t first_row = tile * kRows;
  const int32_t first_query = first_row / params.group;
  const int32_t last_query = min((first_row + kRows - 1) / params.group, rows.queries - 1);
  Span span = {0, 0, first_row < rows.query_rows * params.group};
  if (first_query <= last_query) {
    const int64_t shift = shift_of(params.source, rows);
    span.last = last_key(params.source, last_query + shift, rows.keys);
    span.first = min(first_key(params.source, first_query + shift, rows.keys), span.last);
  }
  return span;
}

/// Length of a unit on the line: at least 1 if it has rows to write.
template <class Shape>
__device__ __forceinline__ int32_t tiles_of(const Span& span) {
  const int32_t tiles = (span.last - span.first + Shape::kTileKeys - 1) / Shape::kTileKeys;
  return span.stored ? max(tiles, 1) : 0;
}

/// Tiles of one key-value head of a sequence.
template <class Shape>
__device__ __forceinline__ int32_t head_tiles(const Params& params, const SequenceRows& rows) {
  int32_t sum = 0;
  for (int32_t tile = 0; tile < params.row_tiles; ++tile) {
    sum += tiles_of<Shape>(span_of<Shape::kRows>(params, rows, tile));
  }
  return sum;
}

/// One unit and where it starts on the line.
struct Unit {
  int32_t sequence, key_head, row_tile;
  int32_t start;
};

template <class Shape>
__device__ __forceinline__ int32_t sequence_tiles(const Params& params, int32_t sequence) {
  return sequence < params.source.sequences
             ? params.source.key_heads *
                   head_tiles<Shape>(params, resolve_rows(params.source, sequence))
             : 0;
}

/// Length of the whole line. Called by whole warps.
template <class Shape>
__device__ __forceinline__ int32_t line_length(const Params& params) {
  if (params.uniform != 0) {
    return params.source.sequences * sequence_tiles<Shape>(params, 0);
  }
  int32_t sum = 0;
  for (int32_t b = static_cast<int32_t>(threadIdx.x % 32); b < params.source.sequences; b += 32) {
    sum += sequence_tiles<Shape>(params, b);
  }
  return __reduce_add_sync(0xffffffffu, sum);
}

/// The sequence that owns a place, and where the sequence starts. Called by whole warps.
template <class Shape>
__device__ __forceinline__ int32_t find_sequence(const Params& params, int32_t place,
                                                 int32_t& start) {
  if (params.uniform != 0) {
    const int32_t each = sequence_tiles<Shape>(params, 0);
    start = place / each * each;
    return place / each;
  }
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  start = 0;
  for (int32_t base = 0; base < params.source.sequences; base += 32) {
    const int32_t own = sequence_tiles<Shape>(params, base + lane);
    int32_t end = own;
    for (int step = 1; step < 32; step *= 2) {
      const int32_t below = __shfl_up_sync(0xffffffffu, end, step);
      end += lane >= step ? below : 0;
    }
    end += start;
    const uint32_t behind = __ballot_sync(0xffffffffu, end > place);
    if (behind != 0) {
      const int owner = __ffs(static_cast<int>(behind)) - 1;
      start = __shfl_sync(0xffffffffu, end - own, owner);
      return base + owner;
    }
    start = __shfl_sync(0xffffffffu, end, 31);
  }
  return params.source.sequences;
}

template <class Shape>
__device__ __forceinline__ Unit find_unit(const Params& params, int32_t place) {
  Unit unit = {};
  unit.sequence = find_sequence<Shape>(params, place, unit.start);
  const SequenceRows rows = resolve_rows(params.source, unit.sequence);
  const int32_t each = head_tiles<Shape>(params, rows);
  unit.key_head = (place - unit.start) / each;
  unit.start += unit.key_head * each;
  for (;; ++unit.row_tile) {
    const int32_t tiles = tiles_of<Shape>(span_of<Shape::kRows>(params, rows, unit.row_tile));
    if (unit.start + tiles > place) {
      return unit;
    }
    unit.start += tiles;
  }
}

__device__ __forceinline__ unsigned long long* counter_of(const Params& params, const Unit& unit) {
  return params.counters +
         (int64_t{unit.sequence} * params.source.key_heads + unit.key_head) * params.row_tiles +
         unit.row_tile;
}

/// The unit behind one of `tiles` tiles; it may be empty.
__device__ __forceinline__ void advance(const Params& params, int32_t tiles, Unit& unit) {
  unit.start += tiles;
  if (++unit.row_tile == params.row_tiles) {
    unit.row_tile = 0;
    if (++unit.key_head == params.source.key_heads) {
      unit.key_head = 0;
      ++unit.sequence;
    }
  }
}

/// Cuts of the line: block n owns [cut(n), cut(n + 1)). The host bounds the line, lengths on the
/// device may make it shorter; then fewer blocks share it, so that each has something to read.
struct Line {
  int32_t length, blocks;

  __device__ __forceinline__ Line(int32_t tiles, int32_t tiles_block)
      : length(tiles),
        blocks(min(static_cast<int32_t>(gridDim.x), (tiles + tiles_block - 1) / tiles_block)) {}

  __device__ __forceinline__ int32_t cut(int32_t block) const {
    return static_cast<int32_t>(int64_t{length} * block / blocks);
  }

  /// The block that owns a place.
  __device__ __forceinline__ int32_t owner(int32_t place) const {
    return static_cast<int32_t>(((int64_t{place} + 1) * blocks - 1) / length);
  }

  /// The blocks that share a unit.
  struct Owners {
    int32_t first, count;
  };

  __device__ __forceinline__ Owners owners(int32_t start, int32_t tiles) const {
    const int32_t first = owner(start);
    return {first, owner(start + tiles - 1) - first + 1};
  }

  /// Where a block leaves its part of the unit that starts at `start`: a block has at most two
  /// units that it shares, its first and its last.
  __device__ __forceinline__ int32_t slot(int32_t block, int32_t start) const {
    return 2 * block + (cut(block) >= start ? 0 : 1);
  }
};

// A unit's counter of blocks that are done with their part: the launch's number above a count of 16
// bits. A counter without this launch's number is one that nobody has begun, so the workspace needs
// no clearing (a launch of its own, longer than a small decode takes): memory that a caller hands
// in carries a random 48-bit number by chance only, and a replayed graph finds what the launch
// before it left, 0.

/// Begins the count of a unit; every block calls it before it arrives.
__device__ __forceinline__ void begin_count(unsigned long long* counter, unsigned long long nonce) {
  unsigned long long seen = *static_cast<volatile unsigned long long*>(counter);
  while ((seen >> 16) != nonce) {
    const unsigned long long before = atomicCAS(counter, seen, nonce << 16);
    seen = before == seen ? nonce << 16 : before;
  }
}

/// True for the last of `pieces` blocks, which also resets the counter.
__device__ __forceinline__ bool arrive_last(unsigned long long* counter, int32_t pieces) {
  const bool last = (atomicAdd(counter, 1ull) & 0xffff) + 1 == static_cast<uint32_t>(pieces);
  if (last) {
    *static_cast<volatile unsigned long long*>(counter) = 0;
  }
  return last;
}

}  // namespace flashloom::decode
