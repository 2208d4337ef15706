#include "flashloom/ops/attention/portable/attention_portable.h"

#include <fmt/format.h>

#include <initializer_list>
#include <limits>

namespace flashloom::portable {
namespace {

constexpr int64_t kWidest = 256;  // of a row of q, k, v

struct Named {
  const char* name;
  ConstTensorView view;
};

std::string storage_refusal(std::initializer_list<Named> tensors) {
  for (const auto& [name, view] : tensors) {
    if (view && view.dtype != DType::f32 && view.dtype != DType::bf16 && view.dtype != DType::f16) {
      return fmt::format("{} in {}", name, dtype_name(view.dtype));
    }
    for (int i = 0; i < view.rank; ++i) {
      if (view.shape[i] > std::numeric_limits<int32_t>::max() / 2) {
        return fmt::format("{} of {} rows", name, view.shape[i]);
      }
    }
  }
  return "";
}

std::string common_refusal(const AttentionInputs& inputs, const AttentionOptions& options) {
  if (std::string refusal = storage_refusal({{"q", inputs.q},
                                             {"k", inputs.k},
                                             {"v", inputs.v},
                                             {"a bias", options.score.bias},
                                             {"slopes", options.score.alibi_slopes},
                                             {"sinks", options.score.sinks}});
      !refusal.empty()) {
    return refusal;
  }
  if (inputs.q.dim(-1) > kWidest || inputs.v.dim(-1) > kWidest) {
    return fmt::format("head dimensions {} and {}", inputs.q.dim(-1), inputs.v.dim(-1));
  }
  if (options.gate.kind != AttentionGate::Kind::none) {
    return "a gate";
  }
  if (options.fp8.q_scale || options.fp8.k_scale || options.fp8.v_scale || options.fp8.out_scale ||
      options.fp8.amax_out) {
    return "8-bit scales";
  }
  return "";
}

}  // namespace

std::string attention_forward_refusal(const AttentionOutputs& outputs,
                                      const AttentionInputs& inputs,
                                      const AttentionOptions& options) {
  if (std::string refusal = storage_refusal(
          {{"out", outputs.out}, {"lse", outputs.lse}, {"entropy", outputs.entropy}});
      !refusal.empty()) {
    return refusal;
  }
  return common_refusal(inputs, options);
}

std::string attention_backward_refusal(const AttentionGradients& gradients,
                                       const AttentionInputs& inputs, const AttentionSaved& saved,
                                       const AttentionOptions& options) {
  if (std::string refusal = storage_refusal({{"out", saved.out},
                                             {"lse", saved.lse},
                                             {"entropy", saved.entropy},
                                             {"dout", saved.dout},
                                             {"dlse", saved.dlse},
                                             {"dentropy", saved.dentropy},
                                             {"dq", gradients.dq},
                                             {"dk", gradients.dk},
                                             {"dv", gradients.dv},
                                             {"dsinks", gradients.dsinks},
                                             {"dbias", gradients.dbias}});
      !refusal.empty()) {
    return refusal;
  }
  return common_refusal(inputs, options);
}

int64_t attention_backward_bytes(const AttentionInputs& inputs, const AttentionSaved& saved,
                                 const AttentionOptions& /*options*/) {
  // Numbers of each query row: log sum and delta, entropy and its gradient; each list at a multiple
  // of 64 bytes.
  const int64_t rows = inputs.q.size() / inputs.q.dim(-1);
  const int64_t list = (rows * 4 + 63) / 64 * 64;
  return list * (saved.dentropy ? 4 : 2);
}

}  // namespace flashloom::portable
