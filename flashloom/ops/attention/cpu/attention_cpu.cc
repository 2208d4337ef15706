#include "flashloom/ops/attention/cpu/attention_cpu.h"

#include <initializer_list>

namespace flashloom {
namespace {

bool unusual_storage(std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    if (view && (view.dtype == DType::f64 || view.dtype == DType::e4m3)) {
      return true;
    }
  }
  return false;
}

std::string common_refusal(const AttentionInputs& inputs, const AttentionOptions& options) {
  if (unusual_storage({inputs.q, inputs.k, inputs.v})) {
    return "f64 and e4m3 storage";
  }
  if (options.score.softcap != 0) {
    return "softcap";
  }
  if (options.score.alibi_slopes || options.score.bias) {
    return "ALiBi and bias";
  }
  if (options.score.sinks) {
    return "sinks";
  }
  if (options.dropout.probability > 0) {
    return "dropout";
  }
  if (options.gate.kind != AttentionGate::Kind::none) {
    return "a gate";
  }
  if (options.positions.query || options.positions.key || options.positions.output_index ||
      options.positions.query_bucket_offsets || options.positions.query_count ||
      options.positions.key_count) {
    return "explicit positions";
  }
  if (options.blocks.block_rows > 0) {
    return "block masks";
  }
  if (options.fp8.amax_out || options.fp8.q_scale || options.fp8.k_scale || options.fp8.v_scale ||
      options.fp8.out_scale) {
    return "scales of 8-bit storage";
  }
  return "";
}

}  // namespace

std::string attention_forward_cpu_refusal(const AttentionOutputs& outputs,
                                          const AttentionInputs& inputs,
                                          const AttentionOptions& options) {
  if (unusual_storage({outputs.out, outputs.lse})) {
    return "f64 and e4m3 storage";
  }
  return outputs.entropy ? "the entropy of rows" : common_refusal(inputs, options);
}

std::string attention_backward_cpu_refusal(const AttentionGradients& gradients,
                                           const AttentionInputs& inputs,
                                           const AttentionSaved& saved,
                                           const AttentionOptions& options) {
  if (unusual_storage({gradients.dq, gradients.dk, gradients.dv, saved.out, saved.dout, saved.lse,
                       saved.dlse})) {
    return "f64 and e4m3 storage";
  }
  return saved.dentropy ? "the gradient of the entropy" : common_refusal(inputs, options);
}

}  // namespace flashloom
