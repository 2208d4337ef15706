#pragma once

#include "flashloom/ops/attention/patterns/head_geometry.h"
#include "flashloom/ops/attention/patterns/range_runs.h"

namespace flashloom {

/// The first row of `rows`, whose positions ascend, at a position of at least `bound`.
FLASHLOOM_HOST_DEVICE constexpr int64_t first_at_or_behind(const GeometrySide& side,
                                                           IndexRange rows, int64_t bound) {
  int64_t low = rows.first;
  int64_t high = rows.end;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (side.position(middle) < bound) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// `rows` without the padding at their end.
FLASHLOOM_HOST_DEVICE constexpr IndexRange without_padding(const GeometrySide& side,
                                                           IndexRange rows) {
  if (side.positions != nullptr) {
    rows.end = first_at_or_behind(side, rows, kPaddingPosition);
  }
  return rows;
}

/// Explicit positions, by binary search: outer rows `rows` and inner rows `range`, both ascending.
/// Exact if a side of the window is unbounded; with windows over positions that jump, tiles in the
/// gaps may be enumerated too.
FLASHLOOM_HOST_DEVICE constexpr RangeRuns position_runs(const HeadGeometry& geometry,
                                                        IndexRange rows, IndexRange range,
                                                        int32_t tile, uint32_t full_flags,
                                                        uint32_t bounds_flag, bool any_full) {
  const int64_t rows_end = rows.end;
  rows = without_padding(geometry.outer, rows);
  any_full = any_full && rows.end == rows_end;
  range = without_padding(geometry.inner, range);
  if (rows.first >= rows.end || range.first >= range.end) {
    return {};
  }
  const int64_t first = geometry.outer.position(rows.first);
  const int64_t last = geometry.outer.position(rows.end - 1);
  int64_t low = geometry.low;
  int64_t high = geometry.high;
  IndexRange hole = {0, 0};
  if (geometry.exclude_self) {
    high -= high == 0 ? 1 : 0;
    low += low == 0 ? 1 : 0;
    hole = {first_at_or_behind(geometry.inner, range, first),
            first_at_or_behind(geometry.inner, range, last + 1)};
  }
  if (low > high) {
    return {};
  }
  const IndexRange visible = {first_at_or_behind(geometry.inner, range, first + low),
                              first_at_or_behind(geometry.inner, range, last + high + 1)};
  IndexRange full = {0, 0};
  if (any_full) {
    full = {first_at_or_behind(geometry.inner, range, last + low),
            first_at_or_behind(geometry.inner, range, first + high + 1)};
  }
  return RangeRuns(visible, full, hole, geometry.inner.count, tile, kRunIndex, full_flags,
                   bounds_flag);
}

}  // namespace flashloom
