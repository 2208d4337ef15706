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
  if (unusual_storage({options.score.alibi_slopes, options.score.bias, options.score.sinks})) {
    return "slopes, biases and sinks in f64";
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
  if (unusual_storage({outputs.out, outputs.lse, outputs.entropy})) {
    return "f64 and e4m3 storage";
  }
  const AttentionGate& gate = options.gate;
  const AttentionBlocks& blocks = options.blocks;
  if (gate.kind != AttentionGate::Kind::none) {
    // The scores of a block lie in a worker's memory together: 4 MB.
    constexpr int64_t kMostScores = 1 << 20;
    if (gate.rows > kMostScores / gate.keys) {
      return "a gate with blocks of more than 2^20 pairs";
    }
    if (blocks.block_rows > 0 &&
        (blocks.block_rows % gate.rows != 0 || blocks.block_keys % gate.keys != 0)) {
      return "a gate whose blocks do not divide those of the block mask";
    }
  }
  return common_refusal(inputs, options);
}

std::string attention_backward_cpu_refusal(const AttentionGradients& gradients,
                                           const AttentionInputs& inputs,
                                           const AttentionSaved& saved,
                                           const AttentionOptions& options) {
  if (unusual_storage({gradients.dq, gradients.dk, gradients.dv, gradients.dsinks, gradients.dbias,
                       saved.out, saved.dout, saved.lse, saved.dlse, saved.entropy,
                       saved.dentropy})) {
    return "f64 and e4m3 storage";
  }
  return common_refusal(inputs, options);
}

}  // namespace flashloom
