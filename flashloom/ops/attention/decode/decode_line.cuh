#pragma once

#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

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

}  // namespace flashloom::decode
