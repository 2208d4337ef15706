#pragma once

#include "flashloom/ops/attention/sm90/forward_shape.cuh"

// Which tile of queries comes next, and which keys it sees.

namespace flashloom::sm90 {

/// Tile `index` of the order of work if all sequences are stored at the same length. In sections,
/// long rows of tiles come first (a causal mask makes late queries see most) and heads that run
/// side by side share the L2 cache.
__device__ __forceinline__ ForwardTile batched_tile(const ForwardParams& params, int32_t index,
                                                    int32_t rows) {
  int32_t head, tile;
  if (params.section == 0) {
    head = index / params.row_tiles;
    tile = index % params.row_tiles;
  } else {
    const int32_t heads = params.problem.heads * params.problem.batch;
    const int32_t section = index / (params.section * params.row_tiles);
    const int32_t width = min(params.section, heads - section * params.section);
    const int32_t rest = index - section * params.section * params.row_tiles;
    head = section * params.section + rest % width;
    tile = params.row_tiles - 1 - rest / width;
  }
  return {head / params.problem.heads, head % params.problem.heads, tile * rows};
}

/// Finds tiles of packed sequences, each with its own number of them, without going through those
/// that do not exist: a warp holds 32 sequences at a time and moves on as indices grow.
class PackedTiles {
 public:
  /// All lanes call it with the same, growing, `index`; false behind the last tile.
  __device__ __forceinline__ bool find(const ForwardParams& params, int32_t index, int32_t rows,
                                       ForwardTile& tile) {
    const uint32_t lane = threadIdx.x % 32;
    const int32_t heads = params.problem.heads;
    while (group_ < params.problem.batch) {
      if (!loaded_) {
        const int32_t own = group_ + static_cast<int32_t>(lane);
        row_tiles_ = own < params.problem.batch
                         ? (sequence_of(params.problem, own).query_rows + rows - 1) / rows
                         : 0;
        behind_ = row_tiles_ * heads;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int32_t other = __shfl_up_sync(0xffffffffu, behind_, step);
          behind_ += static_cast<int>(lane) >= step ? other : 0;
        }
        loaded_ = true;
      }
      const uint32_t ahead = __ballot_sync(0xffffffffu, before_ + behind_ > index);
      if (ahead != 0) {
        const int owner = __ffs(static_cast<int>(ahead)) - 1;
        const int32_t own_tiles = __shfl_sync(0xffffffffu, row_tiles_, owner);
        const int32_t end = before_ + __shfl_sync(0xffffffffu, behind_, owner);
        const int32_t rest = index - (end - own_tiles * heads);
        const bool late_first = params.section != 0;
        tile.batch = group_ + owner;
        tile.head = late_first ? rest % heads : rest / own_tiles;
        tile.row = (late_first ? own_tiles - 1 - rest / heads : rest % own_tiles) * rows;
        return true;
      }
      before_ += __shfl_sync(0xffffffffu, behind_, 31);
      group_ += 32;
      loaded_ = false;
    }
    return false;
  }

 private:
  int32_t group_ = 0;   // first of the 32 sequences
  int32_t before_ = 0;  // tiles of the sequences before them
  int32_t row_tiles_ = 0;
  int32_t behind_ = 0;  // tiles of the group up to this lane's sequence
  bool loaded_ = false;
};

/// Tiles of keys that the queries [row, row + rows) of a sequence see; one tile, all of it hidden,
/// if they see none.
__device__ __forceinline__ KeyTiles key_tiles(const Sequence& sequence, int32_t row, int32_t rows,
                                              int32_t keys) {
  const int32_t last = min(row + rows, sequence.query_length) - 1;
  const int32_t begin = sequence.key_begin(row) / keys;
  const int32_t end = (sequence.key_end(last) + keys - 1) / keys;
  return last < row || begin >= end ? KeyTiles{0, 1} : KeyTiles{begin, end};
}

/// The part of the work of the 64 queries from `row` on: of `range` what they see, at least one
/// tile. Queries behind the end count as if they were there, so that what is left out on either
/// side stays short (see ForwardShape). With `whole` the part is all of `range`.
__device__ __forceinline__ ForwardPart forward_part(const Sequence& sequence, KeyTiles range,
                                                    int32_t row, int32_t keys, bool whole) {
  ForwardPart part = {};
  const bool idle = row >= sequence.query_length;
  part.state = static_cast<int32_t>(range.begin < 0 ? ForwardState::done
                                    : idle          ? ForwardState::idle
                                                    : ForwardState::work);
  part.closed = sequence.key_end(row) / keys;
  part.open = (sequence.key_begin(row + 63) + keys - 1) / keys;
  part.begin = range.begin;
  part.end = range.end;
  if (!whole && !idle) {
    part.begin = min(max(range.begin, sequence.key_begin(row) / keys), range.end - 1);
    part.end = min(range.end, (sequence.key_end(row + 63) + keys - 1) / keys);
    part.end = max(part.end, part.begin + 1);
  }
  part.left = part.begin - range.begin;
  part.right = range.end - part.end;
  return part;
}

/// Whether the part allows that its last two tiles change places: it sees both.
__device__ __forceinline__ bool may_swap(const ForwardPart& part) {
  return static_cast<ForwardState>(part.state) == ForwardState::idle ||
         (part.right == 0 && part.end - part.begin >= 2);
}

/// The tile of keys before those that hide something from the parts that the first `groups` lanes
/// of a warp hold, if there are such tiles and all parts see it and another one; else -1.
__device__ __forceinline__ int32_t leading_tile(const ForwardPart& part, int32_t groups) {
  const bool works = static_cast<int32_t>(threadIdx.x % 32) < groups &&
                     static_cast<ForwardState>(part.state) == ForwardState::work;
  const int32_t lead = __reduce_min_sync(0xffffffffu, works ? part.closed : INT32_MAX) - 1;
  const bool sees = lead >= part.begin && lead < part.end && part.end - part.begin >= 2;
  const bool leads = __all_sync(0xffffffffu, !works || sees) != 0 &&
                     __any_sync(0xffffffffu, works && part.closed < part.end) != 0;
  return leads ? lead : -1;
}

/// Walks the tiles of keys of one tile of queries from the last to the first, through the block
/// mask if there is one.
template <class Shape>
class KeyWalk {
 public:
  __device__ __forceinline__ KeyWalk(const ForwardParams& params, const ForwardWork& work)
      : range_(work.range),
        tile_(work.range.end),
        lowest_(work.range.begin),
        swap_(work.swapped != 0 ? work.range.end - 2 : INT32_MAX),
        lead_(work.lead) {
    if constexpr (Shape::kListed) {
      const ForwardBlocks& blocks = params.rule.blocks;
      if (blocks.block_rows > 0) {
        const int32_t row = work.tile.row / blocks.block_rows;
        const int32_t* offsets = blocks.offsets.at(work.tile.batch, work.tile.head) + row;
        entry_begin_ = min(max(offsets[0], 0), blocks.entry_count);
        entry_ = min(max(offsets[1], 0), blocks.entry_count);
        tile_ = lowest_;
      }
    }
  }

  __device__ __forceinline__ bool next(const ForwardParams& params, const ForwardWork& work,
                                       ForwardStep& step) {
    if constexpr (Shape::kListed) {
      const ForwardBlocks& blocks = params.rule.blocks;
      const int32_t tiles = blocks.block_keys / Shape::kKeys;
      while (tile_ <= lowest_ && entry_ > entry_begin_) {
        --entry_;
        const int32_t* entries = blocks.entries.at(work.tile.batch, work.tile.head);
        const int32_t* partial = blocks.partial.at(work.tile.batch, work.tile.head);
        const int32_t block = min(max(entries[entry_], 0), range_.end);
        partial_ = partial == nullptr ? -1 : min(partial[entry_], blocks.partial_count - 1);
        tile_ = min(range_.end, (block + 1) * tiles);
        lowest_ = max(range_.begin, block * tiles);
      }
    }
    if (tile_ <= lowest_) {
      return false;
    }
    --tile_;
    step = {Shape::kSwaps   ? swapped_tile(tile_, swap_)
            : Shape::kLeads ? led_tile(tile_, range_.end - 1, lead_)
                            : tile_,
            partial_, 0, -1};
    return true;
  }

  /// Tiles that are left to walk, at least.
  __device__ __forceinline__ int32_t left() const {
    return entry_ > entry_begin_ ? INT32_MAX : tile_ - lowest_;
  }

 private:
  KeyTiles range_;
  int32_t tile_, lowest_;
  int32_t swap_, lead_;
  int32_t entry_ = 0, entry_begin_ = 0;
  int32_t partial_ = -1;
};

}  // namespace flashloom::sm90
