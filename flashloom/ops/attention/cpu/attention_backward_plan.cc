#include "flashloom/ops/attention/cpu/attention_backward_plan.h"

#include <algorithm>

#include "flashloom/core/parallel.h"

namespace flashloom {

BackwardPlan backward_plan(const AttentionGradients& gradients, const AttentionInputs& inputs,
                           const AttentionSaved& saved, const AttentionOptions& options,
                           const BackwardTarget& target, float* memory) {
  BackwardPlan plan = {};
  plan.gradients = &gradients;
  plan.inputs = &inputs;
  plan.saved = &saved;
  plan.options = &options;
  plan.source = geometry_source(inputs, options);
  plan.head_dim = inputs.q.dim(-1);
  plan.value_dim = inputs.v.dim(-1);
  plan.head_padded = padded_depth(plan.head_dim);
  plan.value_padded = padded_depth(plan.value_dim);
  plan.panel_width = target.panel_width;
  const bool pairs = target.pairs;
  plan.score_pairs = pairs && stored_as_pairs(inputs.q, inputs.k);
  plan.value_pairs = pairs && stored_as_pairs(saved.dout, inputs.v);
  plan.dkey_pairs = pairs && inputs.q.dtype == DType::bf16 && gradients.dk.dtype == DType::bf16;
  plan.dvalue_pairs = pairs && saved.dout.dtype == DType::bf16 && gradients.dv.dtype == DType::bf16;
  plan.score_depth = plan.score_pairs ? plan.head_dim / 2 : plan.head_dim;
  plan.score_padded = padded_depth(plan.score_depth);
  plan.dvalue_depth = plan.value_pairs ? plan.value_dim / 2 : plan.value_dim;
  plan.dvalue_padded = padded_depth(plan.dvalue_depth);
  plan.tile = {tile_side(plan.source.block_rows, kBackwardQueries),
               tile_side(plan.source.block_keys, kBackwardKeys)};
  plan.panels = tile_count(plan.tile.keys, plan.panel_width);
  plan.key_tiles = tile_count(plan.source.max_key, plan.tile.keys);
  const int64_t heads =
      std::max<int64_t>(1, int64_t{plan.source.sequences} * plan.source.key_heads);
  plan.chunks = std::clamp<int64_t>(tile_count(kBackwardTasks, heads), 1,
                                    std::clamp<int64_t>(plan.key_tiles, 1, kMaxKeyChunks));
  plan.total_rows =
      (plan.source.cu_query != nullptr ? int64_t{plan.source.total_query}
                                       : int64_t{plan.source.sequences} * plan.source.max_query) +
      plan.source.sequences * kRowPadding;
  plan.score = CpuScore(options, plan.head_dim, true);
  plan.with_entropy = static_cast<bool>(saved.dentropy);
  plan.scratch_floats = BackwardScratch(plan, nullptr).floats;
  FloatArena arena(memory);
  plan.log_sums = arena.take(plan.source.heads * plan.total_rows);
  plan.deltas = arena.take(plan.source.heads * plan.total_rows);
  if (plan.with_entropy) {
    plan.entropies = arena.take(plan.source.heads * plan.total_rows);
    plan.dentropies = arena.take(plan.source.heads * plan.total_rows);
  }
  plan.partial = arena.take(plan.chunks * plan.source.heads * plan.total_rows * plan.head_padded);
  plan.scratch = arena.take(thread_count() * plan.scratch_floats);
  plan.floats = arena.used();
  return plan;
}

BackwardScratch::BackwardScratch(const BackwardPlan& plan, float* memory) {
  FloatArena arena(memory);
  const int64_t tile_rows = padded_rows(plan.tile.rows);
  const int64_t tile_keys = padded_rows(plan.tile.keys);
  const int64_t width = plan.panel_width;
  keys = arena.take(plan.panels * plan.score_padded * width);
  values = arena.take(plan.panels * plan.dvalue_padded * width);
  grouped_keys = arena.take(plan.head_padded * tile_keys);
  dkeys = arena.take(plan.panels * plan.head_padded * width);
  dvalues = arena.take(plan.panels * plan.value_padded * width);
  queries = arena.take(plan.head_padded * tile_rows);
  douts = arena.take(plan.value_padded * tile_rows);
  query_pairs = arena.take(plan.score_pairs ? plan.score_padded * tile_rows : 0);
  dout_pairs = arena.take(plan.value_pairs ? plan.dvalue_padded * tile_rows : 0);
  query_rows = arena.take(plan.dkey_pairs ? plan.head_padded * tile_rows / 2 : 0);
  dout_rows = arena.take(plan.dvalue_pairs ? plan.value_padded * tile_rows / 2 : 0);
  packed = arena.take(plan.dkey_pairs || plan.dvalue_pairs ? tile_rows / 2 * width : 0);
  probabilities = arena.take(tile_rows * width);
  dscores = arena.take(tile_rows * plan.panels * width);
  slopes = arena.take(plan.score.softcap > 0 ? tile_rows * width : 0);
  dropped = arena.take(plan.score.dropout > 0 ? tile_rows * width : 0);
  centred = arena.take(plan.with_entropy ? tile_rows * width : 0);
  entropies = arena.take(tile_rows);
  dentropies = arena.take(tile_rows);
  log_sums = arena.take(tile_rows);
  deltas = arena.take(tile_rows);
  rows = arena.take(width * std::max(plan.head_padded, plan.value_padded));
  floats = arena.used();
}

}  // namespace flashloom
