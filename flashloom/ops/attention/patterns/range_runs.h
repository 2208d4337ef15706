#pragma once

#include <cstdint>

#include "flashloom/ops/attention/patterns/tile_runs.h"

namespace flashloom {

/// Half-open range of rows or keys.
struct IndexRange {
  int64_t first;
  int64_t end;
};

/// Runs over one interval of tiles whose middle needs no checks:
///
///   first ... full_first ... [hole) ... full_end ... end
///     check         full     check   full      check
///
/// Windows, explicit positions and buckets all reduce to this; the last tile of the sequence, if
/// keys behind the end lie in it, makes a run of its own.
class RangeRuns {
 public:
  RangeRuns() = default;

  /// `visible` holds every index that some pair sees, `full` those that all pairs see, `hole` a
  /// part of `full` that must be checked all the same (exclude_self); `length` is the number of
  /// indices, `tile` the size of a tile.
  FLASHLOOM_HOST_DEVICE constexpr RangeRuns(IndexRange visible, IndexRange full, IndexRange hole,
                                            int64_t length, int32_t tile, uint32_t check_flags,
                                            uint32_t full_flags, uint32_t bounds_flag)
      : check_flags_(check_flags), full_flags_(full_flags), bounds_flag_(bounds_flag) {
    if (visible.first >= visible.end) {
      return;
    }
    tile_ = down(visible.first, tile);
    end_ = up(visible.end, tile);
    full_first_ = up(full.first, tile);
    full_end_ = full.end >= length ? up(length, tile) : down(full.end, tile);
    if (full.first >= full.end || full_first_ >= full_end_) {
      full_first_ = full_end_ = end_;
    }
    if (hole.first < hole.end) {
      hole_first_ = down(hole.first, tile);
      hole_end_ = up(hole.end, tile);
    }
    if (length % tile != 0) {
      bounds_tile_ = down(length, tile);
    }
  }

  /// The same runs within tiles [first, end).
  FLASHLOOM_HOST_DEVICE constexpr RangeRuns clipped(int64_t first, int64_t end) const {
    RangeRuns runs = *this;
    runs.tile_ = first > tile_ ? static_cast<int32_t>(first < end_ ? first : end_) : tile_;
    runs.end_ = end < end_ ? static_cast<int32_t>(end > tile_ ? end : tile_) : end_;
    return runs;
  }

  FLASHLOOM_HOST_DEVICE constexpr int32_t first() const { return tile_; }

  FLASHLOOM_HOST_DEVICE constexpr int32_t end() const { return end_; }

  FLASHLOOM_HOST_DEVICE constexpr bool next(TileRun& run) {
    if (tile_ >= end_) {
      return false;
    }
    int32_t stop = end_;
    uint32_t flags = check_flags_;
    if (tile_ < full_first_) {
      stop = least(stop, full_first_);
    } else if (tile_ < full_end_) {
      stop = least(stop, full_end_);
      if (tile_ >= hole_first_ && tile_ < hole_end_) {
        stop = least(stop, hole_end_);
      } else {
        stop = tile_ < hole_first_ ? least(stop, hole_first_) : stop;
        flags = full_flags_;
      }
    }
    if (tile_ == bounds_tile_) {
      flags = (flags & ~static_cast<uint32_t>(kRunGated)) | bounds_flag_;
      stop = tile_ + 1;
    } else if (tile_ < bounds_tile_) {
      stop = least(stop, bounds_tile_);
    }
    run = TileRun{tile_, stop - tile_, flags, -1};
    tile_ = stop;
    return true;
  }

 private:
  static FLASHLOOM_HOST_DEVICE constexpr int32_t down(int64_t index, int32_t tile) {
    return static_cast<int32_t>(index / tile);
  }

  static FLASHLOOM_HOST_DEVICE constexpr int32_t up(int64_t index, int32_t tile) {
    return static_cast<int32_t>((index + tile - 1) / tile);
  }

  static FLASHLOOM_HOST_DEVICE constexpr int32_t least(int32_t a, int32_t b) {
    return a < b ? a : b;
  }

  int32_t tile_ = 0;
  int32_t end_ = 0;
  int32_t full_first_ = 0;
  int32_t full_end_ = 0;
  int32_t hole_first_ = 0x7fffffff;
  int32_t hole_end_ = 0x7fffffff;
  int32_t bounds_tile_ = -1;
  uint32_t check_flags_ = 0;
  uint32_t full_flags_ = 0;
  uint32_t bounds_flag_ = 0;
};

}  // namespace flashloom
