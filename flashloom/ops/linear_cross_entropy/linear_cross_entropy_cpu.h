#pragma once

#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace flashloom {

/// The op on the CPU, without checks.
void linear_cross_entropy_cpu(TensorView loss, TensorView dhidden, TensorView dweight,
                              ConstTensorView hidden, ConstTensorView weight,
                              ConstTensorView labels, std::span<std::byte> workspace,
                              const LinearCrossEntropyOptions& options);

int64_t linear_cross_entropy_workspace_bytes_cpu(int64_t tokens, int64_t channels,
                                                 int64_t vocabulary, bool with_gradients,
                                                 bool keeps_logits);

}  // namespace flashloom
