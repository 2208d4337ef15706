#pragma once

#include "flashloom/ops/attention/patterns/block_mask.h"
#include "flashloom/ops/attention/patterns/buckets.h"
#include "flashloom/ops/attention/patterns/positions.h"
#include "flashloom/ops/attention/patterns/window.h"

namespace flashloom {

/// The runs of inner tiles for one outer tile, whatever the pattern, ascending and each tile once:
///
///   TileIterator runs(geometry, query_tile, {rows, keys});  // key tiles of a query tile
///   TileIterator runs(columns, key_tile, {rows, keys});     // columns = transposed(geometry)
///   for (TileRun run; runs.next(run);) ...
///
/// Exact (a tile is enumerated iff it holds a visible pair) but for partial blocks, whose bits the
/// kernel reads, windows over explicit positions with gaps, and exclude_self in a tile of a single
/// pair. Keeps a pointer to `geometry`.
class TileIterator {
 public:
  FLASHLOOM_HOST_DEVICE constexpr TileIterator(const HeadGeometry& geometry, int64_t outer_tile,
                                               TileShape shape) {
    const int32_t outer_size = geometry.transposed ? shape.keys : shape.rows;
    const int32_t inner_size = geometry.transposed ? shape.rows : shape.keys;
    const uint32_t inner_bounds = geometry.transposed ? kRunRowBounds : kRunBounds;
    IndexRange rows = {outer_tile * outer_size, (outer_tile + 1) * outer_size};
    if (rows.end > geometry.outer.count) {
      rows.end = geometry.outer.count;
      cut_ = geometry.transposed ? kRunBounds : kRunRowBounds;
    }
    const uint32_t full = geometry.gated && cut_ == 0 ? kRunGated : kRunFull;
    if (geometry.buckets > 0) {
      kind_ = Kind::buckets;
      buckets_ = BucketRuns(geometry, rows, inner_size, full, inner_bounds);
      return;
    }
    range_ = is_affine(geometry)
                 ? window_runs(geometry, rows, inner_size, full, inner_bounds)
                 : position_runs(geometry, rows, IndexRange{0, geometry.inner.count}, inner_size,
                                 full, inner_bounds, true);
    if (geometry.outer_block > 0 && rows.first < rows.end) {
      kind_ = Kind::blocks;
      blocks_ = BlockMaskRuns(geometry, rows.first / geometry.outer_block, range_, inner_size);
    }
  }

  FLASHLOOM_HOST_DEVICE constexpr bool next(TileRun& run) {
    const bool more = kind_ == Kind::range    ? range_.next(run)
                      : kind_ == Kind::blocks ? blocks_.next(run)
                                              : buckets_.next(run);
    run.flags |= more ? cut_ : 0;
    return more;
  }

  TileIterator(HeadGeometry&& geometry, int64_t outer_tile, TileShape shape) = delete;

 private:
  enum class Kind : uint8_t { range, blocks, buckets };

  Kind kind_ = Kind::range;
  uint32_t cut_ = 0;
  RangeRuns range_;
  BlockMaskRuns blocks_;
  BucketRuns buckets_;
};

}  // namespace flashloom
