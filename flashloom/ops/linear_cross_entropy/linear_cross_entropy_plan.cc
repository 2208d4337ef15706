#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_plan.h"

#include <algorithm>

#include "flashloom/core/parallel.h"

namespace flashloom {
namespace {

// The vocabulary is cut into at most this many slices of whole tiles. A slice is the unit of
// parallel work and has a partial sum of dhidden of its own.
constexpr int64_t kMaxSlices = 32;
constexpr int64_t kRowUnit = 12;  // whole register tiles of gemm()
// Rows enough that reading the weight from memory, and packing it, is a percent of the products.
constexpr int64_t kMaxRows = 516;
constexpr int64_t kWorkspaceGoal = int64_t{96} << 20;

}  // namespace

LinearCrossEntropyPlan plan_linear_cross_entropy(int64_t tokens, int64_t channels,
                                                 int64_t vocabulary, LogitStorage storage) {
  LinearCrossEntropyPlan plan;
  plan.storage = storage;
  plan.tiles = tile_count(vocabulary, kLogitTile);
  plan.slice_tiles = std::max<int64_t>(1, tile_count(plan.tiles, kMaxSlices));
  plan.slices = tile_count(plan.tiles, plan.slice_tiles);
  // Of one row of a chunk.
  const int64_t logit_bytes = 4 * kLogitTile * (keeps_chunk(storage) ? plan.tiles : plan.slices);
  const bool has_partials = storage == LogitStorage::online || storage == LogitStorage::chunk;
  const int64_t partial_bytes = has_partials ? 4 * plan.slices * channels : 0;
  const int64_t sum_bytes = plan.slices * static_cast<int64_t>(sizeof(LogitSums));
  const auto state_bytes = static_cast<int64_t>(sizeof(LogitRow));
  const bool filtered = storage == LogitStorage::filtered;
  if (filtered) {
    const int64_t fitting = kDenseBytes / (4 * std::max<int64_t>(1, channels));
    plan.dense = std::min({vocabulary, kMostDense, fitting});
  }
  const int64_t filter_row_bytes = filtered ? 4 * (plan.dense + channels) : 0;
  const int64_t filter_bytes =
      filtered ? 4 * (vocabulary + (plan.dense + plan.slices + 1) * channels + plan.dense) : 0;
  const int64_t row_bytes =
      4 * channels + logit_bytes + partial_bytes + sum_bytes + state_bytes + filter_row_bytes;
  const int64_t fitting = (kWorkspaceGoal - filter_bytes) / row_bytes / kRowUnit * kRowUnit;
  plan.rows = std::min(std::clamp(fitting, kRowUnit, kMaxRows), tokens);
  int64_t end = 0;
  const auto place = [&](int64_t bytes) {
    const int64_t at = end;
    end += tile_count(bytes, kWorkspaceAlignment) * kWorkspaceAlignment;
    return at;
  };
  plan.places = place(4 * tokens);
  plan.x = place(plan.rows * 4 * channels);
  plan.slice_sums = place(plan.rows * sum_bytes);
  plan.row_state = place(plan.rows * state_bytes);
  plan.logits = place(plan.rows * logit_bytes);
  plan.partial = place(plan.rows * partial_bytes);
  if (filtered) {
    plan.weight_sums = place(4 * plan.slices * channels);
    plan.hidden_sum = place(4 * channels);
    plan.dense_place = place(4 * vocabulary);
    plan.dense_entry = place(4 * plan.dense);
    plan.dense_weight = place(4 * plan.dense * channels);
    plan.dense_dz = place(plan.rows * 4 * plan.dense);
    plan.row_sums = place(plan.rows * 4 * channels);
  }
  plan.bytes = end + kWorkspaceAlignment;  // the workspace itself may start anywhere
  return plan;
}

}  // namespace flashloom
