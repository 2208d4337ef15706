#pragma once

#include "flashloom/ops/attention/decode/decode_params.cuh"

namespace flashloom::decode {

// Units are (sequence, key-value head, tile of rows). Where all have the host's lengths, each is
// cut into `parts` equal parts, a block each. Where lengths lie on the device, the work of a launch
// is one line of tiles of keys, units one behind the other, each as long as the tiles that its rows
// see and a little more (line_length), and is cut into equal stretches: blocks end together
// whatever the lengths are. As many key-value heads as `lanes` lie side by side, and each stretch
// has as many blocks, a head each: they read the same rows of the cache at the same time, which the
// memory likes better than heads at different places. Either way decode_join.cuh joins a unit of
// several blocks. Places on the line fit 32 bits; the host refuses longer ones.

/// One unit and its place on the line: where it starts or, of a piece, that of the unit's first
/// tile.
struct Unit {
  int32_t sequence, key_head, row_tile;
  int32_t start;
};

/// What a unit has to do.
struct Work {
  SequenceRows rows;
  int64_t shift;        // position of query 0 less that of key 0
  int32_t low, high;    // query i sees keys [i + low, i + high)
  int32_t row_count;    // rows of its tile that are stored, padding included
  int32_t first, last;  // keys [first, last) that some row sees
  int32_t base;         // key of the first tile
  int32_t tiles;        // its length on the line: at least 1 if it has rows to write

  /// Further than any key, and small enough to be added to a query.
  static constexpr int32_t kFar = 1 << 30;

  static __device__ __forceinline__ int32_t clamped(int64_t distance) {
    return static_cast<int32_t>(min(max(distance, -int64_t{kFar}), int64_t{kFar}));
  }

  __device__ __forceinline__ int32_t first_key(int32_t query) const {
    return min(max(query + low, 0), rows.keys);
  }

  __device__ __forceinline__ int32_t last_key(int32_t query) const {
    return min(max(query + high, 0), rows.keys);
  }
};

template <class Shape>
__device__ __forceinline__ Work resolve(const Params& params, int32_t sequence, int32_t row_tile) {
  const GeometrySource& source = params.source;
  Work work;
  work.rows = resolve_rows(source, sequence);
  work.shift =
      source.has_offset ? source.offset : int64_t{work.rows.keys} - int64_t{work.rows.queries};
  work.low = source.left < 0 ? -Work::kFar : Work::clamped(work.shift - source.left);
  work.high = source.right < 0 ? Work::kFar : Work::clamped(work.shift + source.right + 1);
  const int32_t first_row = row_tile * Shape::kRows;
  work.row_count = min(
      work.rows.query_rows * static_cast<int32_t>(params.group.divisor) - first_row, Shape::kRows);
  const int32_t first_query = params.group.quotient(first_row);
  const int32_t last_query =
      min(params.group.quotient(first_row + Shape::kRows - 1), work.rows.queries - 1);
  work.last = first_query <= last_query ? work.last_key(last_query) : 0;
  work.first = min(work.first_key(first_query), work.last);
  work.base = work.first & ~(Shape::kTileKeys - 1);
  work.tiles = max((work.last - work.base + Shape::kTileKeys - 1) / Shape::kTileKeys, 1);
  if (work.row_count <= 0) {
    work.tiles = 0;
  }
  return work;
}

/// A block's part of a unit: tiles [begin, end), none where there are more parts than tiles.
struct Part {
  int32_t index, part;  // of the unit and in it
  Unit unit;
  Work work;
  int32_t begin, end;
};

template <class Shape>
__device__ __forceinline__ Part find_part(const Params& params) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  Part own;
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  own.index = params.parts.quotient(block);
  own.part = block - own.index * parts;
  const int32_t head = params.row_tile_count.quotient(own.index);
  own.unit.sequence = params.key_heads.quotient(head);
  own.unit.key_head = head - own.unit.sequence * params.source.key_heads;
  own.unit.row_tile = own.index - head * params.row_tiles;
  own.unit.start = 0;
  own.work = resolve<Shape>(params, own.unit.sequence, own.unit.row_tile);
  const int32_t each = params.parts.quotient(own.work.tiles);
  const int32_t longer = own.work.tiles - each * parts;
  own.begin = own.part * each + min(own.part, longer);
  own.end = own.begin + each + (own.part < longer ? 1 : 0);
  return own;
}

}  // namespace flashloom::decode
