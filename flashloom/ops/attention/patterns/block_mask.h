#pragma once

#include "flashloom/ops/attention/patterns/head_geometry.h"
#include "flashloom/ops/attention/patterns/range_runs.h"

namespace flashloom {

/// A block mask in compressed rows, within the runs that visibility leaves. Neighbouring full
/// blocks join into one run. The bits of partial blocks are not looked at here.
class BlockMaskRuns {
 public:
  BlockMaskRuns() = default;

  FLASHLOOM_HOST_DEVICE constexpr BlockMaskRuns(const HeadGeometry& geometry, int64_t outer_block,
                                                const RangeRuns& visible, int32_t tile)
      : visible_(visible),
        entries_(geometry.blocks.entries),
        partial_(geometry.blocks.partial),
        entry_(clamp(geometry.blocks.offsets[outer_block], geometry.blocks.entry_count)),
        entry_end_(clamp(geometry.blocks.offsets[outer_block + 1], geometry.blocks.entry_count)),
        tiles_per_block_(geometry.inner_block / tile) {}

  FLASHLOOM_HOST_DEVICE constexpr bool next(TileRun& run) {
    for (;;) {
      if (current_.next(run)) {
        if (current_partial_ >= 0) {
          run.flags = (run.flags & ~static_cast<uint32_t>(kRunGated)) | kRunBlockBits;
          run.partial = current_partial_;
        }
        return true;
      }
      if (entry_ >= entry_end_) {
        return false;
      }
      const int64_t block = entries_[entry_];
      current_partial_ = partial_of(entry_);
      ++entry_;
      int64_t block_end = block + 1;
      if (current_partial_ < 0) {
        while (entry_ < entry_end_ && entries_[entry_] == block_end && partial_of(entry_) < 0) {
          ++entry_;
          ++block_end;
        }
      }
      current_ = visible_.clipped(block * tiles_per_block_, block_end * tiles_per_block_);
    }
  }

 private:
  static FLASHLOOM_HOST_DEVICE constexpr int32_t clamp(int32_t offset, int32_t count) {
    return offset < 0 ? 0 : offset < count ? offset : count;
  }

  FLASHLOOM_HOST_DEVICE constexpr int32_t partial_of(int32_t entry) const {
    return partial_ != nullptr ? partial_[entry] : -1;
  }

  RangeRuns visible_;
  RangeRuns current_;
  const int32_t* entries_ = nullptr;
  const int32_t* partial_ = nullptr;
  int32_t entry_ = 0;
  int32_t entry_end_ = 0;
  int32_t tiles_per_block_ = 1;
  int32_t current_partial_ = -1;
};

}  // namespace flashloom
