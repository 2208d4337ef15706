#include "cli/attend_tiles.h"

#include <algorithm>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_cpu.h"

namespace flashloom::cli {
namespace {

double pairs_of_run(const HeadGeometry& geometry, TileShape tile, int64_t query_tile,
                    const TileRun& run) {
  const int64_t first_row = query_tile * tile.rows;
  const int64_t end_row = std::min<int64_t>(first_row + tile.rows, geometry.outer.count);
  const int64_t first_key = int64_t{run.first} * tile.keys;
  const int64_t end_key =
      std::min<int64_t>(int64_t{run.first + run.count} * tile.keys, geometry.inner.count);
  if ((run.flags & kBorderChecks) == 0) {
    return static_cast<double>(end_row - first_row) * static_cast<double>(end_key - first_key);
  }
  int64_t pairs = 0;
  for (int64_t i = first_row; i < end_row; ++i) {
    for (int64_t j = first_key; j < end_key; ++j) {
      const bool kept =
          (run.flags & kRunBlockBits) == 0 ||
          block_bit(geometry, run.partial, i % geometry.outer_block, j % geometry.inner_block);
      pairs += kept && positions_visible(geometry, i, j) ? 1 : 0;
    }
  }
  return static_cast<double>(pairs);
}

}  // namespace

void add_tiles(const HeadGeometry& geometry, TileShape tile, AttendCounts& counts) {
  counts.all += static_cast<double>(geometry.outer.count) * geometry.inner.count;
  counts.tiles +=
      tile_count(geometry.outer.count, tile.rows) * tile_count(geometry.inner.count, tile.keys);
  for_each_run(geometry, tile, [&](int64_t query_tile, const TileRun& run) {
    counts.pairs += pairs_of_run(geometry, tile, query_tile, run);
    ((run.flags & kBorderChecks) == 0 ? counts.full : counts.border) += run.count;
  });
}

TileShape attend_tile(const AttendCase& call) {
  const AttendResults shapes = call.results(call.inputs().q.dtype);
  return attention_forward_cpu_tile(call.outputs(shapes), call.inputs(), call.options());
}

AttendCounts count_tiles(const AttendCase& call, TileShape tile) {
  const GeometrySource source = geometry_source(call.inputs(), call.options());
  std::vector<AttendCounts> parts(static_cast<size_t>(source.sequences) * source.heads);
  parallel_for(static_cast<int64_t>(parts.size()), [&](int64_t task) {
    const auto sequence = static_cast<int32_t>(task / source.heads);
    const auto head = static_cast<int32_t>(task % source.heads);
    const HeadGeometry geometry =
        resolve_head(source, resolve_rows(source, sequence), sequence, head);
    AttendCounts& counts = parts[static_cast<size_t>(task)];
    counts.query_rows = geometry.outer.count;
    counts.key_rows = head % (source.heads / source.key_heads) == 0 ? geometry.inner.count : 0;
    add_tiles(geometry, tile, counts);
  });
  AttendCounts sum;
  for (const AttendCounts& part : parts) {
    sum.pairs += part.pairs;
    sum.all += part.all;
    sum.full += part.full;
    sum.border += part.border;
    sum.tiles += part.tiles;
    sum.key_rows += part.key_rows;
    sum.query_rows += part.query_rows;
  }
  return sum;
}

}  // namespace flashloom::cli
