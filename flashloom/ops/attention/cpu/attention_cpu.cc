#include "flashloom/ops/attention/cpu/attention_cpu.h"

namespace flashloom {
std::string attention_forward_cpu_refusal(const AttentionOutputs&, const AttentionInputs&,
                                          const AttentionOptions&) {
  return "any call in this version";
}

std::string attention_backward_cpu_refusal(const AttentionGradients&, const AttentionInputs&,
                                           const AttentionSaved&, const AttentionOptions&) {
  return "any call in this version";
}

int64_t attention_forward_cpu_bytes(const AttentionOutputs&, const AttentionInputs&,
                                    const AttentionOptions&) {
  return 0;
}

int64_t attention_backward_cpu_bytes(const AttentionGradients&, const AttentionInputs&,
                                     const AttentionSaved&, const AttentionOptions&) {
  return 0;
}

void attention_forward_cpu(const AttentionOutputs&, const AttentionInputs&, std::span<std::byte>,
                           const AttentionOptions&) {}

void attention_backward_cpu(const AttentionGradients&, const AttentionInputs&,
                            const AttentionSaved&, std::span<std::byte>, const AttentionOptions&) {}
}  // namespace flashloom
