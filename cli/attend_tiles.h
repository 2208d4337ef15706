#pragma once

#include <cstdint>
#include <string>

#include "cli/attend_case.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/patterns/sequence_geometry.h"
#include "flashloom/ops/attention/patterns/tile_iterator.h"

namespace flashloom::cli {

/// What the block iterator lets the forward kernel do, over all sequences and heads.
struct AttendCounts {
  double pairs = 0;       // visible
  double all = 0;         // pairs of rows in use
  int64_t full = 0;       // tiles without a check
  int64_t border = 0;     // tiles with one
  int64_t tiles = 0;      // of the whole rectangles
  double key_rows = 0;    // K rows in use, over sequences and key-value heads
  double query_rows = 0;  // likewise of Q
};

/// Flags of tiles whose pairs are checked one by one.
inline constexpr uint32_t kBorderChecks = kRunPositions | kRunIndex | kRunBlockBits;

/// Calls visit(query tile, run) for every run of one head, in the kernel's order.
template <class Visit>
void for_each_run(const HeadGeometry& geometry, TileShape tile, Visit visit) {
  for (int64_t t = 0; t < tile_count(geometry.outer.count, tile.rows); ++t) {
    TileIterator runs(geometry, t, tile);
    for (TileRun run = {}; runs.next(run);) {
      visit(t, run);
    }
  }
}

/// Adds one head's pairs and tiles.
void add_tiles(const HeadGeometry& geometry, TileShape tile, AttendCounts& counts);

/// The tiles that the CPU's forward kernel walks for this call.
TileShape attend_tile(const AttendCase& call);

/// Walks the iterator's runs as the kernel does; pairs of border tiles are looked at one by one.
AttendCounts count_tiles(const AttendCase& call, TileShape tile);

/// An SVG of the tiles of one head: full, border, not visited; all sequences of a packed call, else
/// the one named.
std::string draw_tiles(const AttendCase& call, TileShape tile, int64_t sequence, int64_t head);

}  // namespace flashloom::cli
