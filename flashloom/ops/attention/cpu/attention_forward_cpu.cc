#include <algorithm>
#include <limits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_cpu.h"
#include "flashloom/ops/attention/cpu/attention_decode.h"
#include "flashloom/ops/attention/cpu/attention_forward_plan.h"
#include "flashloom/ops/attention/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/attention/cpu/attention_forward_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/attention/cpu/forward_tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

constexpr int kForwardVectors = 3;

void forward_task(const ForwardPlan& plan, int32_t sequence, int32_t head, int64_t query_tile,
                  float* memory) {
  ForwardTile<kForwardVectors>(plan, sequence, head, query_tile, memory).run();
}

ForwardTarget forward_target() {
  return {kForwardVectors * kLanes, bf16_pairs_available()};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(forward_task);
HWY_EXPORT(forward_target);

namespace {

// Rows that no query of an output index names.
void clear_outputs(const AttentionOutputs& outputs) {
  const bool packed = outputs.out.rank == 3;
  const int64_t heads = outputs.out.dim(-3);
  const int64_t sequences = packed ? 1 : outputs.out.dim(0);
  parallel_for(sequences * heads, [&](int64_t task) {
    const auto rows = [&](const TensorView& view) {
      return attention_head_rows(view, packed, task / heads, task % heads, 0);
    };
    const TensorView out = rows(outputs.out);
    for (int64_t i = 0; i < out.dim(0); ++i) {
      std::fill_n(mutable_row(out, i), out.dim(1) * static_cast<int64_t>(dtype_bytes(out.dtype)),
                  std::byte{0});
      if (outputs.lse) {
        *reinterpret_cast<float*>(mutable_row(rows(outputs.lse), i)) =
            -std::numeric_limits<float>::infinity();
      }
      if (outputs.entropy) {
        *reinterpret_cast<float*>(mutable_row(rows(outputs.entropy), i)) = 0;
      }
    }
  });
}

}  // namespace

TileShape attention_forward_cpu_tile(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                     const AttentionOptions& options) {
  const ForwardPlan plan =
      forward_plan(outputs, inputs, options, HWY_DYNAMIC_DISPATCH(forward_target)());
  if (decode_applies(outputs, inputs, options)) {
    return {std::max(plan.source.max_query, 1),
            static_cast<int32_t>(decode_plan(outputs, inputs, options, nullptr).block)};
  }
  return plan.tile;
}

int64_t attention_forward_cpu_bytes(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                    const AttentionOptions& options) {
  if (decode_applies(outputs, inputs, options)) {
    return attention_decode_cpu_bytes(outputs, inputs, options);
  }
  const ForwardPlan plan =
      forward_plan(outputs, inputs, options, HWY_DYNAMIC_DISPATCH(forward_target)());
  return thread_count() * ForwardScratch(plan, nullptr).floats * 4;
}

void attention_forward_cpu(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                           std::span<std::byte> workspace, const AttentionOptions& options) {
  if (decode_applies(outputs, inputs, options)) {
    attention_decode_cpu(outputs, inputs, workspace, options);
    return;
  }
  const ForwardPlan plan =
      forward_plan(outputs, inputs, options, HWY_DYNAMIC_DISPATCH(forward_target)());
  if (plan.source.heads == 0) {
    return;
  }
  if (options.positions.output_index) {
    clear_outputs(outputs);
  }
  const int64_t floats = ForwardScratch(plan, nullptr).floats;
  auto* memory = reinterpret_cast<float*>(workspace.data());
  const int64_t tiles = tile_count(plan.source.max_query, plan.tile.rows);
  const int64_t head_tasks = plan.source.heads / plan.heads;
  // Last tiles first: under a causal mask they are the longest.
  parallel_for_workers(tiles * plan.source.sequences * head_tasks, [&](int64_t task, int worker) {
    const int64_t tile = tiles - 1 - task / (plan.source.sequences * head_tasks);
    const int64_t rest = task % (plan.source.sequences * head_tasks);
    HWY_DYNAMIC_DISPATCH(forward_task)
    (plan, static_cast<int32_t>(rest / head_tasks),
     static_cast<int32_t>(rest % head_tasks * plan.heads), tile, memory + worker * floats);
  });
}

}  // namespace flashloom
#endif  // HWY_ONCE
