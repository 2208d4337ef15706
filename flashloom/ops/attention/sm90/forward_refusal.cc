#include <fmt/format.h>

#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/refusal.h"

namespace flashloom::sm90 {

std::string attention_forward_refusal(const AttentionOutputs& outputs,
                                      const AttentionInputs& inputs,
                                      const AttentionOptions& options) {
  if (std::string refusal = common_refusal(inputs, options); !refusal.empty()) {
    return refusal;
  }
  const int64_t dim = inputs.q.shape[inputs.q.rank - 1];
  if (dim != 64 && dim != 128) {
    return fmt::format("head dimension {}", dim);
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } tensors[] = {{"q", inputs.q}, {"k", inputs.k}, {"v", inputs.v}, {"out", outputs.out}};

  for (const auto& [name, view] : tensors) {
    if (view.size() == 0) {
      return fmt::format("an empty {}", name);
    }
    if (std::string refusal = tensor_refusal(name, view, inputs.q.dtype, dim); !refusal.empty()) {
      return refusal;
    }
  }
  return first_used({
      {"a block mask", static_cast<bool>(options.blocks.row_offsets)},
      {"a softcap", options.score.softcap != 0},
      {"ALiBi", static_cast<bool>(options.score.alibi_slopes)},
      {"dropout", options.dropout.probability != 0},
      {"the entropy output", static_cast<bool>(outputs.entropy)},
      {"an lse in f64", outputs.lse && outputs.lse.dtype != DType::f32},
      {"sinks that are not f32 side by side",
       options.score.sinks &&
           (options.score.sinks.dtype != DType::f32 || options.score.sinks.strides[0] != 1)},
      // A NaN behind the end would reach the result: the kernel masks P there but multiplies by V.
      {"used lengths",
       static_cast<bool>(options.sequences.used_query || options.sequences.used_key)},
  });
}

}  // namespace flashloom::sm90
