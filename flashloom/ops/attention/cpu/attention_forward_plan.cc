#include "flashloom/ops/attention/cpu/attention_forward_plan.h"

#include <algorithm>

#include "flashloom/core/parallel.h"

namespace flashloom {
namespace {

// Whether all heads of a group see the same pairs, so that they can share tiles of keys.
bool heads_share_pairs(const AttentionOptions& options) {
  const AttentionPositions& positions = options.positions;
  const bool own_positions = positions.query || positions.key || positions.query_count ||
                             positions.key_count || positions.output_index ||
                             positions.query_bucket_offsets;
  const bool own_blocks = options.blocks.row_offsets && options.blocks.row_offsets.dim(1) > 1;
  return !own_positions && !own_blocks;
}

}  // namespace

ForwardPlan forward_plan(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                         const AttentionOptions& options, const ForwardTarget& target) {
  ForwardPlan plan = {};
  const int64_t panel_width = target.panel_width;
  plan.outputs = &outputs;
  plan.inputs = &inputs;
  plan.options = &options;
  plan.source = geometry_source(inputs, options);
  plan.head_dim = inputs.q.dim(-1);
  plan.value_dim = inputs.v.dim(-1);
  plan.head_padded = padded_depth(plan.head_dim);
  plan.value_padded = padded_depth(plan.value_dim);
  plan.pairs = target.pairs && stored_as_pairs(inputs.q, inputs.k);
  plan.score_depth = plan.pairs ? plan.head_dim / 2 : plan.head_dim;
  plan.score_padded = padded_depth(plan.score_depth);
  plan.panel_width = panel_width;
  const int64_t group = plan.source.key_heads > 0 ? plan.source.heads / plan.source.key_heads : 1;
  plan.heads = heads_share_pairs(options) ? group : 1;
  const int64_t panel_bytes =
      plan.heads * (plan.score_padded + plan.value_padded) * panel_width * 4;
  const int64_t panels = std::clamp<int64_t>(kForwardPanelBytes / panel_bytes, 1, kForwardPanels);
  plan.tile = {static_cast<int32_t>(panels * panel_width), static_cast<int32_t>(kForwardKeys)};
  if (plan.source.block_rows > 0) {
    plan.tile = {tile_side(plan.source.block_rows, kForwardBlockRows),
                 tile_side(plan.source.block_keys, kForwardKeys)};
  }
  plan.gated = options.gate.kind != AttentionGate::Kind::none;
  if (plan.gated) {
    plan.tile = {static_cast<int32_t>(options.gate.rows), static_cast<int32_t>(options.gate.keys)};
  }
  // A gate compares scores with thresholds.
  plan.score = CpuScore(options, plan.head_dim, !plan.gated);
  return plan;
}

ForwardScratch::ForwardScratch(const ForwardPlan& plan, float* memory) {
  FloatArena arena(memory);
  const int64_t tile_keys = padded_rows(plan.tile.keys);
  const int64_t width = plan.panel_width;
  const int64_t panels = plan.heads * tile_count(plan.tile.rows, width);
  keys = arena.take(plan.score_padded * tile_keys);
  values = arena.take(plan.value_padded * tile_keys);
  const int64_t head_panels = plan.gated ? tile_count(plan.tile.rows, width) : 1;
  scores = arena.take(head_panels * tile_keys * width);
  tops = arena.take(plan.gated ? head_panels * width : 0);
  lost_largest = arena.take(plan.gated ? panels * width : 0);
  lost_sum = arena.take(plan.gated ? panels * width : 0);
  queries = arena.take(panels * plan.score_padded * width);
  out = arena.take(panels * plan.value_padded * width);
  largest = arena.take(panels * width);
  sum = arena.take(panels * width);
  moment = arena.take(panels * width);
  dropout = arena.take(plan.score.dropout > 0 ? tile_keys * width : 0);
  factor = arena.take(width);
  rows = arena.take(width * std::max(plan.head_padded, plan.value_padded));
  floats = arena.used();
}

}  // namespace flashloom
