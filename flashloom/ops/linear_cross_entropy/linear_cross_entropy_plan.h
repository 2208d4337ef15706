#pragma once

#include <cstdint>

namespace flashloom {

/// What the workspace holds of the logits.
enum class LogitStorage : uint8_t {
  /// A tile a slice; losses only.
  none,
  /// A tile a slice: dhidden is summed up as attention sums values, with a running maximum
  /// (weight is both keys and values), and dweight is not asked for.
  online,
  /// All logits of a chunk of rows.
  chunk,
  /// The same; dhidden is summed row by row from the few tokens that a filter keeps, so it needs no
  /// partial sums.
  filtered,
};

/// Whether all logits of a chunk are kept.
constexpr bool keeps_chunk(LogitStorage storage) {
  return storage == LogitStorage::chunk || storage == LogitStorage::filtered;
}

/// Entries of a sorted vocabulary that take part in one dense product, at most: their weights (and
/// gradients) should fit the last cache.
inline constexpr int64_t kMostDense = 2048;
inline constexpr int64_t kDenseBytes = int64_t{8} << 20;

/// Columns of logits that are computed, measured and turned into gradients while they are in cache:
/// one block of the depth of gemm(), so that sums of dhidden are read and written once a tile.
inline constexpr int64_t kLogitTile = 320;

/// Of a stretch of a row.
struct LogitSums {
  double exp_sum;  // of exp(z - maximum)
  double sum;      // of z
  float maximum;
};

struct LogitRow {
  float maximum;
  float factor;  // of exp(z - maximum) in dz
  float label_logit;
  float label_gradient;
  float least_logit;  // that a filter keeps
};

/// Cuts of the work and places in the workspace: a function of sizes alone.
struct LinearCrossEntropyPlan {
  LogitStorage storage = LogitStorage::none;
  int64_t tiles = 0;
  int64_t slice_tiles = 0;  // tiles a slice
  int64_t slices = 0;
  int64_t rows = 0;  // of a chunk, at most

  // Offsets in bytes.
  int64_t places = 0;      // (tokens) i32: rows that bear loss
  int64_t x = 0;           // (rows, C): hidden rows of the chunk
  int64_t slice_sums = 0;  // (slices, rows) LogitSums
  int64_t row_state = 0;   // (rows) LogitRow
  int64_t logits = 0;      // (slices, rows, tile); for chunks (tiles, rows, tile)
  int64_t partial = 0;     // (slices, rows, C) for online and chunk

  // Of filtered gradients.
  int64_t dense = 0;         // D: entries of the dense product, at most
  int64_t weight_sums = 0;   // (slices, C): sums of the weight's rows; all of them in the first
  int64_t hidden_sum = 0;    // (C): of the rows of all chunks so far
  int64_t dense_place = 0;   // (V) i32: how often kept, then the place among the dense, or -1
  int64_t dense_entry = 0;   // (D) i32
  int64_t dense_weight = 0;  // (D, C): their weights, then their gradients
  int64_t dense_dz = 0;      // (rows, D)
  int64_t row_sums = 0;      // (rows, C)
  int64_t bytes = 0;
};

LinearCrossEntropyPlan plan_linear_cross_entropy(int64_t tokens, int64_t channels,
                                                 int64_t vocabulary, LogitStorage storage);

/// Offsets are multiples of this from the first such address in the workspace.
inline constexpr int64_t kWorkspaceAlignment = 64;

}  // namespace flashloom
