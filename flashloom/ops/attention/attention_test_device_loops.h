#pragma once

#include <cstddef>
#include <span>

#include "flashloom/core/device.h"
#include "flashloom/ops/attention/attention.h"

// y of the law (attention_test_law.h) on a GPU: the loops of the reference there in f32, P and dS
// rounded to the storage type of q. For sequences that the loops on the CPU take minutes for.

namespace flashloom::attention_test {

void device_loops_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          std::span<std::byte> workspace, const AttentionOptions& options,
                          Stream stream);
void device_loops_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                           const AttentionSaved& saved, std::span<std::byte> workspace,
                           const AttentionOptions& options, Stream stream);

}  // namespace flashloom::attention_test
