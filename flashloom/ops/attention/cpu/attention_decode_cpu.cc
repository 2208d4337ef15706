#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_decode.h"
#include "flashloom/ops/attention/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/attention/cpu/attention_decode_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/attention/cpu/decode_merge-inl.h"
#include "flashloom/ops/attention/cpu/decode_split-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

void decode_split(const DecodePlan& plan, int32_t sequence, int32_t key_head, int64_t split,
                  float* scratch) {
  DecodeSplit(plan, sequence, key_head, split, scratch).run();
}

void merge_row(const DecodePlan& plan, int32_t sequence, int32_t head, int64_t query) {
  merge_decoded_row(plan, sequence, head, query);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(decode_split);
HWY_EXPORT(merge_row);

void attention_decode_cpu(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          std::span<std::byte> workspace, const AttentionOptions& options) {
  const DecodePlan plan =
      decode_plan(outputs, inputs, options, reinterpret_cast<float*>(workspace.data()));
  const int64_t key_heads = plan.source.key_heads;
  parallel_for_workers(
      plan.source.sequences * key_heads * plan.splits, [&](int64_t task, int worker) {
        const int64_t rest = task / plan.splits;
        HWY_DYNAMIC_DISPATCH(decode_split)
        (plan, static_cast<int32_t>(rest / key_heads), static_cast<int32_t>(rest % key_heads),
         task % plan.splits, plan.scratch + worker * plan.scratch_floats);
      });
  parallel_for(int64_t{plan.source.sequences} * plan.source.heads, [&](int64_t task) {
    for (int64_t i = 0; i < plan.source.max_query; ++i) {
      HWY_DYNAMIC_DISPATCH(merge_row)
      (plan, static_cast<int32_t>(task / plan.source.heads),
       static_cast<int32_t>(task % plan.source.heads), i);
    }
  });
}

}  // namespace flashloom
#endif  // HWY_ONCE
