#include "flashloom/ops/attention/cpu/attention_cpu.h"

namespace flashloom {
std::string attention_forward_cpu_refusal(const AttentionOutputs& outputs,
                                          const AttentionInputs& inputs,
                                          const AttentionOptions& options) {
  for (const ConstTensorView* view : {&inputs.q, &inputs.k, &inputs.v}) {
    if (view->dtype == DType::f64 || view->dtype == DType::e4m3) {
      return "f64 and e4m3 storage";
    }
  }
  const ConstTensorView out = outputs.out;
  if (out.dtype == DType::f64 || out.dtype == DType::e4m3 ||
      (outputs.lse && outputs.lse.dtype == DType::f64)) {
    return "f64 and e4m3 storage";
  }
  if (outputs.entropy) {
    return "the entropy of rows";
  }
  if (options.score.softcap != 0 || options.score.alibi_slopes || options.score.bias ||
      options.score.sinks || options.dropout.probability > 0 ||
      options.gate.kind != AttentionGate::Kind::none || options.positions.output_index ||
      options.blocks.block_rows > 0 || options.fp8.amax_out) {
    return "this feature";
  }
  return "";
}

std::string attention_backward_cpu_refusal(const AttentionGradients&, const AttentionInputs&,
                                           const AttentionSaved&, const AttentionOptions&) {
  return "any call in this version";
}

int64_t attention_backward_cpu_bytes(const AttentionGradients&, const AttentionInputs&,
                                     const AttentionSaved&, const AttentionOptions&) {
  return 0;
}

void attention_backward_cpu(const AttentionGradients&, const AttentionInputs&,
                            const AttentionSaved&, std::span<std::byte>, const AttentionOptions&) {}
}  // namespace flashloom
