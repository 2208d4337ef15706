#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/ops/attention/attention.h"

// The float64 reference on tensors of a GPU: the whole contract in plain loops, any storage, so
// that long sequences can be checked in seconds. attention_reference.h, on the CPU, is its
// definition.

namespace flashloom::portable {

int64_t attention_reference_forward_bytes(const AttentionInputs& inputs,
                                          const AttentionOptions& options);
int64_t attention_reference_backward_bytes(const AttentionInputs& inputs,
                                           const AttentionOptions& options);

void attention_forward_reference(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                 std::span<std::byte> workspace, const AttentionOptions& options,
                                 Stream stream);
void attention_backward_reference(const AttentionGradients& gradients,
                                  const AttentionInputs& inputs, const AttentionSaved& saved,
                                  std::span<std::byte> workspace, const AttentionOptions& options,
                                  Stream stream);

}  // namespace flashloom::portable
