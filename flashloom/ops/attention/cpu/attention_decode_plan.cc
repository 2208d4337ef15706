#include <algorithm>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_decode.h"

namespace flashloom {

DecodePlan decode_plan(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       const AttentionOptions& options, float* memory) {
  DecodePlan plan = {};
  plan.outputs = &outputs;
  plan.inputs = &inputs;
  plan.options = &options;
  plan.source = geometry_source(inputs, options);
  plan.head_dim = inputs.q.dim(-1);
  plan.value_dim = inputs.v.dim(-1);
  plan.head_padded = padded_depth(plan.head_dim);
  plan.value_padded = padded_depth(plan.value_dim);
  plan.score = CpuScore(options, plan.head_dim, true);
  plan.group = plan.source.heads / plan.source.key_heads;
  plan.rows = plan.group * plan.source.max_query;
  const int64_t row_bytes =
      std::max(plan.head_dim * static_cast<int64_t>(dtype_bytes(inputs.k.dtype)),
               plan.value_dim * static_cast<int64_t>(dtype_bytes(inputs.v.dtype)));
  plan.block = std::clamp(kDecodePhaseBytes / row_bytes / kDecodeStep * kDecodeStep, kDecodeStep,
                          kDecodeBlock);
  plan.split_keys = kDecodeSplitKeys;
  if (options.execution.splits > 0) {
    plan.split_keys =
        std::max<int64_t>(1, tile_count(plan.source.max_key, int64_t{options.execution.splits}));
  }
  plan.splits = std::max<int64_t>(1, tile_count(plan.source.max_key, plan.split_keys));
  plan.partial_floats = (plan.rows * (plan.value_padded + 2) + 15) / 16 * 16;
  FloatArena scratch(nullptr);
  scratch.take(plan.rows * plan.head_padded);
  scratch.take(kDecodeBlock * plan.head_padded);
  scratch.take(kDecodeBlock * plan.value_padded);
  plan.scratch_floats = scratch.used();
  FloatArena arena(memory);
  plan.partial = arena.take(int64_t{plan.source.sequences} * plan.source.key_heads * plan.splits *
                            plan.partial_floats);
  plan.scratch = arena.take(thread_count() * plan.scratch_floats);
  plan.floats = arena.used();
  return plan;
}

bool decode_applies(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    const AttentionOptions& options) {
  const GeometrySource source = geometry_source(inputs, options);
  const AttentionPositions& positions = options.positions;
  const bool affine = !positions.query && !positions.key && !positions.output_index &&
                      !positions.query_bucket_offsets && !positions.query_count &&
                      !positions.key_count && !positions.exclude_self && source.block_rows == 0;
  return source.key_heads > 0 && affine && !source.gated && !outputs.entropy &&
         !options.score.bias && options.dropout.probability == 0 &&
         int64_t{source.heads} / source.key_heads * source.max_query <= kDecodeRows;
}

int64_t attention_decode_cpu_bytes(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                   const AttentionOptions& options) {
  return decode_plan(outputs, inputs, options, nullptr).floats * 4;
}

}  // namespace flashloom
