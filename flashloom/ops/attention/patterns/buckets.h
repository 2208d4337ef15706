#pragma once

#include "flashloom/ops/attention/patterns/positions.h"

namespace flashloom {

/// Hash buckets: the buckets that the outer rows touch, one after the other. Tiles shared by two
/// buckets are enumerated once. Full tiles arise only where one bucket owns all rows and keys, so
/// callers who pad buckets to tiles get almost only those.
class BucketRuns {
 public:
  BucketRuns() = default;

  FLASHLOOM_HOST_DEVICE constexpr BucketRuns(const HeadGeometry& geometry, IndexRange rows,
                                             int32_t tile, uint32_t full_flags,
                                             uint32_t bounds_flag)
      : geometry_(&geometry),
        rows_(rows),
        tile_(tile),
        full_flags_(full_flags),
        bounds_flag_(bounds_flag),
        bucket_(rows.first < rows.end ? bucket_of(geometry.outer, geometry.buckets, rows.first)
                                      : geometry.buckets) {}

  FLASHLOOM_HOST_DEVICE constexpr bool next(TileRun& run) {
    for (;;) {
      if (current_.next(run)) {
        done_ = run.first + run.count;
        return true;
      }
      if (bucket_ >= geometry_->buckets || geometry_->outer.bucket_offsets[bucket_] >= rows_.end) {
        return false;
      }
      const IndexRange own = bucket_rows(geometry_->outer, rows_);
      const IndexRange keys = bucket_rows(geometry_->inner, IndexRange{0, geometry_->inner.count});
      const bool alone = own.first == rows_.first && own.end == rows_.end;
      const RangeRuns runs =
          position_runs(*geometry_, own, keys, tile_, full_flags_, bounds_flag_, alone);
      current_ = runs.clipped(done_, runs.end());
      ++bucket_;
    }
  }

 private:
  FLASHLOOM_HOST_DEVICE constexpr IndexRange bucket_rows(const GeometrySide& side,
                                                         IndexRange within) const {
    const int64_t first = side.bucket_offsets[bucket_];
    const int64_t end = side.bucket_offsets[bucket_ + 1];
    return {first > within.first ? first : within.first, end < within.end ? end : within.end};
  }

  const HeadGeometry* geometry_ = nullptr;
  IndexRange rows_ = {0, 0};
  int32_t tile_ = 1;
  uint32_t full_flags_ = 0;
  uint32_t bounds_flag_ = 0;
  int32_t bucket_ = 0;
  int32_t done_ = 0;
  RangeRuns current_;
};

}  // namespace flashloom
