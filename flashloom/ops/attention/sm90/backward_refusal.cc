#include <fmt/format.h>

#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/refusal.h"

namespace flashloom::sm90 {

std::string attention_backward_refusal(const AttentionGradients& gradients,
                                       const AttentionInputs& inputs, const AttentionSaved& saved,
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
  } tensors[] = {{"q", inputs.q},      {"k", inputs.k},      {"v", inputs.v},
                 {"out", saved.out},   {"dout", saved.dout}, {"dq", gradients.dq},
                 {"dk", gradients.dk}, {"dv", gradients.dv}};

  for (const auto& [name, view] : tensors) {
    if (view.size() == 0) {
      return fmt::format("an empty {}", name);
    }
    if (std::string refusal = tensor_refusal(name, view, inputs.q.dtype, dim); !refusal.empty()) {
      return refusal;
    }
  }
  return first_used({
      {"exclude_self", options.positions.exclude_self},
      {"a negative scale", options.score.scale < 0},
      {"a block mask", static_cast<bool>(options.blocks.row_offsets)},
      {"a softcap", options.score.softcap != 0},
      {"ALiBi", static_cast<bool>(options.score.alibi_slopes)},
      {"dropout", options.dropout.probability != 0},
      {"dentropy", static_cast<bool>(saved.dentropy)},
      {"sinks in the backward pass", options.score.sinks || gradients.dsinks},
      {"dbias", static_cast<bool>(gradients.dbias)},
      {"accumulate", gradients.accumulate},
      {"packed or padded sequences in the backward pass",
       options.sequences.cu_query || options.sequences.cu_key || options.sequences.used_query ||
           options.sequences.used_key},
  });
}

}  // namespace flashloom::sm90
