#pragma once

#include "flashloom/ops/attention/patterns/head_geometry.h"
#include "flashloom/ops/attention/patterns/range_runs.h"

namespace flashloom {

/// Dense, causal and sliding windows over affine positions, closed form: one to three runs, and one
/// more if the last tile is cut by the end. `rows` are the outer rows of the tile.
FLASHLOOM_HOST_DEVICE constexpr RangeRuns window_runs(const HeadGeometry& geometry, IndexRange rows,
                                                      int32_t tile, uint32_t full_flags,
                                                      uint32_t bounds_flag) {
  const int64_t length = geometry.inner.count;
  const int64_t shift = geometry.outer.start - geometry.inner.start;
  // In indices: visible iff low <= inner - outer <= high.
  int64_t low = geometry.low + shift;
  int64_t high = geometry.high + shift;
  IndexRange hole = {0, 0};
  uint32_t check = kRunPositions;
  if (geometry.exclude_self) {
    check |= kRunIndex;
    high -= high == shift ? 1 : 0;
    low += low == shift ? 1 : 0;
    hole = {rows.first + shift, rows.end + shift};
    hole.first = hole.first < 0 ? 0 : hole.first;
    hole.end = hole.end > length ? length : hole.end;
  }
  if (rows.first >= rows.end || low > high) {
    return {};
  }
  IndexRange visible = {rows.first + low, rows.end + high};
  visible.first = visible.first < 0 ? 0 : visible.first;
  visible.end = visible.end > length ? length : visible.end;
  IndexRange full = {rows.end - 1 + low, rows.first + high + 1};
  full.first = full.first < 0 ? 0 : full.first;
  full.end = full.end > length ? length : full.end;
  return RangeRuns(visible, full, hole, length, tile, check, full_flags, bounds_flag);
}

}  // namespace flashloom
