#pragma once

#include "flashloom/ops/attention/cpu/cpu_score.h"

namespace flashloom {

/// Queries a tile of a block mask may have at most.
inline constexpr int64_t kForwardBlockRows = 128;
/// Keys a tile: a tile of K and V stays in the second-level cache beside the panels of queries, and
/// the rescaling of the output is paid once for so many keys.
inline constexpr int64_t kForwardKeys = 128;
/// Most panels of queries of one head in a task, and most bytes of all their states.
inline constexpr int64_t kForwardPanels = 4;
inline constexpr int64_t kForwardPanelBytes = 256 << 10;

/// One forward call, cut into tasks (sequence, group of heads, tile of queries).
struct ForwardPlan {
  const AttentionOutputs* outputs;
  const AttentionInputs* inputs;
  const AttentionOptions* options;
  GeometrySource source;
  int64_t head_dim, value_dim;
  int64_t head_padded, value_padded;
  bool pairs;                         // q and k stay pairs of bf16
  int64_t score_depth, score_padded;  // elements of a row of q and k: D, or D / 2 pairs
  int64_t panel_width;
  TileShape tile;
  int64_t heads;  // query heads a task, which share keys and what they see
  bool gated;     // tiles are the gate's, and the scores of all panels of a head are kept together
  CpuScore score;
};

/// What the chosen instructions want.
struct ForwardTarget {
  int64_t panel_width;
  bool pairs;  // bf16_pairs_available()
};

ForwardPlan forward_plan(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                         const AttentionOptions& options, const ForwardTarget& target);

/// A worker's scratch memory.
struct ForwardScratch {
  float* keys;          // (D / 16, tile keys, 16), or pairs
  float* values;        // (E / 16, tile keys, 16)
  float* scores;        // (tile keys, W); with a gate (panels of a head, tile keys, W)
  float* queries;       // (panels, D, W), or pairs
  float* out;           // (panels, E, W)
  float* largest;       // (panels, W)
  float* sum;           // (panels, W)
  float* moment;        // (panels, W): for the entropy of rows
  float* tops;          // (panels of a head, W): largest scores of a tile, for the gate
  float* lost_largest;  // (panels, W): bound of the mass of skipped tiles, in base 2,
  float* lost_sum;      // (panels, W): as largest score and sum
  float* dropout;       // (tile keys, W)
  float* factor;        // (W)
  float* rows;          // (W, D or E)
  int64_t floats;       // of all

  ForwardScratch(const ForwardPlan& plan, float* memory);
};

}  // namespace flashloom
