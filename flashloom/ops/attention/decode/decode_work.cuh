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

/// What a unit of `tiles` tiles takes of the line: before its first tile lies what it costs to
/// begin and end a piece.
template <class Shape>
__device__ __forceinline__ int32_t line_length(int32_t tiles) {
  return tiles > 0 ? tiles + Shape::kPieceTiles : 0;
}

/// What all key-value heads of a sequence take of the line, as many side by side as it has lanes.
template <class Shape>
__device__ __forceinline__ int32_t sequence_length(const Params& params, int32_t sequence) {
  int32_t sum = 0;
#pragma unroll 1
  for (int32_t tile = 0; tile < params.row_tiles; ++tile) {
    sum += line_length<Shape>(resolve<Shape>(params, sequence, tile).tiles);
  }
  return sum * params.lanes.quotient(params.source.key_heads);
}

/// Cuts of the line: stretch n is [cut(n), cut(n + 1)), of `each` tiles or, the first `longer`
/// ones, one more. The host bounds the line, lengths on the device may make it shorter; then it has
/// fewer stretches, so that each has something to read.
struct Line {
  int32_t stretches, each, longer;
  int32_t lanes, lane;  // the block's own one

  __device__ __forceinline__ int32_t cut(int32_t stretch) const {
    return stretch * each + min(stretch, longer);
  }

  /// The stretch that has a place.
  __device__ __forceinline__ int32_t owner(int32_t place) const {
    const bool in_longer = place < longer * (each + 1);
    return (place + (in_longer ? 0 : -longer)) / (in_longer ? each + 1 : each);
  }

  /// Where the block of a stretch and this lane leaves its part of the unit that starts at `start`:
  /// a block has at most two units that it shares, its first and its last.
  __device__ __forceinline__ int32_t slot(int32_t stretch, int32_t start) const {
    return (2 * stretch + (cut(stretch) >= start ? 0 : 1)) * lanes + lane;
  }
};

/// A block's stretch, and a unit at or before its begin. An idle block has an empty one.
struct Stretch {
  Line line;
  int32_t number, begin, end;
  Unit unit;
};

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

/// Sequences whose lengths on the line a block keeps in shared memory, where keys come later.
template <class Shape>
inline constexpr int32_t kKeptLengths = Shape::kBufferBytes / 4;

/// Finds the lengths on the line of all sequences, each by one lane of the block's warps that take
/// part: they are behind a memory's latency. A barrier follows.
template <class Shape>
__device__ __forceinline__ void keep_lengths(const Params& params, int32_t thread, int32_t threads,
                                             int32_t* lengths) {
  const int32_t count = params.source.sequences;
  if (count <= kKeptLengths<Shape>) {
#pragma unroll 1
    for (int32_t i = thread; i < count; i += threads) {
      lengths[i] = sequence_length<Shape>(params, i);
    }
  }
}

/// A block's stretch of the line. Called by whole warps, which all find the same.
template <class Shape>
__device__ __forceinline__ Stretch find_stretch(const Params& params, const int32_t* lengths) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t count = params.source.sequences;
  Stretch stretch = {};
  stretch.number = params.lanes.quotient(static_cast<int32_t>(blockIdx.x));
  stretch.line.lanes = static_cast<int32_t>(params.lanes.divisor);
  stretch.line.lane = static_cast<int32_t>(blockIdx.x) - stretch.number * stretch.line.lanes;
  // Once for the length of the line, once for the sequence that owns the stretch's begin.
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    int32_t sum = 0;
#pragma unroll 1
    for (int32_t base = 0; base < count; base += 32) {
      int32_t own = 0;
      if (base + lane < count) {
        own = count <= kKeptLengths<Shape> ? lengths[base + lane]
                                           : sequence_length<Shape>(params, base + lane);
      }
      int32_t end = own;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int32_t below = __shfl_up_sync(0xffffffffu, end, step);
        end += lane >= step ? below : 0;
      }
      end += sum;
      sum = __shfl_sync(0xffffffffu, end, 31);
      const uint32_t behind = __ballot_sync(0xffffffffu, pass == 1 && end > stretch.begin);
      if (behind != 0) {
        const int source = __ffs(static_cast<int>(behind)) - 1;
        stretch.unit.sequence = base + source;
        stretch.unit.start = __shfl_sync(0xffffffffu, end - own, source);
        sum = __shfl_sync(0xffffffffu, own, source);
        break;
      }
    }
    if (pass == 0) {
      const int32_t most = (sum + params.tiles_block - 1) / params.tiles_block;
      Line& line = stretch.line;
      line.stretches = min(params.lanes.quotient(static_cast<int32_t>(gridDim.x)), most);
      if (stretch.number >= line.stretches) {
        return stretch;
      }
      line.each = sum / line.stretches;
      line.longer = sum - line.each * line.stretches;
      stretch.begin = line.cut(stretch.number);
      stretch.end = line.cut(stretch.number + 1);
    }
    if (pass == 1) {
      const int32_t each = sum / params.lanes.quotient(params.source.key_heads);
      const int32_t heads = (stretch.begin - stretch.unit.start) / each;
      stretch.unit.key_head = heads * stretch.line.lanes + stretch.line.lane;
      stretch.unit.start += heads * each;
    }
  }
  return stretch;
}

/// The unit behind one of this length in the same lane; it may be empty.
__device__ __forceinline__ void advance(const Params& params, int32_t length, Unit& unit) {
  unit.start += length;
  if (++unit.row_tile == params.row_tiles) {
    unit.row_tile = 0;
    unit.key_head += static_cast<int32_t>(params.lanes.divisor);
    if (unit.key_head >= params.source.key_heads) {
      unit.key_head -= params.source.key_heads;
      ++unit.sequence;
    }
  }
}

/// The counter of a unit of the line.
__device__ __forceinline__ unsigned long long* unit_counter(const Params& params,
                                                            const Unit& unit) {
  return params.counters +
         (int64_t{unit.sequence} * params.source.key_heads + unit.key_head) * params.row_tiles +
         unit.row_tile;
}

// A counter of arrivals: the launch's number above a count of 16 bits. A counter without this
// launch's number is one that nobody has begun, so the workspace needs no clearing (a launch of its
// own, longer than a small decode takes): memory that a caller hands in carries a random 48-bit
// number by chance only, and a replayed graph finds what the launch before it left, 0.

/// Begins a count; one thread of every block does before it arrives. Each step is a trip to the
/// memory that the thread need not wait for.
struct CountStart {
  unsigned long long* counter;  // null for threads and pieces without one
  unsigned long long seen = 0;

  __device__ __forceinline__ explicit CountStart(unsigned long long* begun) : counter(begun) {}

  __device__ __forceinline__ void look() {
    if (counter != nullptr) {
      seen = *static_cast<volatile unsigned long long*>(counter);
    }
  }

  /// Between the look and this only another block can have changed the counter, which has begun it.
  __device__ __forceinline__ void begin(unsigned long long nonce) const {
    if (counter != nullptr && (seen >> 16) != nonce) {
      atomicCAS(counter, seen, nonce << 16);
    }
  }
};

}  // namespace flashloom::decode
