#pragma once

#include <span>

#include "flashloom/ops/lora_linear/lora_linear.h"

namespace flashloom {

/// The op on the CPU, without checks.
void lora_linear_forward_cpu(std::span<const TensorView> y, TensorView hidden, ConstTensorView x,
                             std::span<const LoraProjection> projections);
void lora_linear_backward_cpu(TensorView dx, std::span<const LoraGradients> gradients,
                              TensorView dhidden, std::span<const ConstTensorView> dy,
                              ConstTensorView x, ConstTensorView hidden,
                              std::span<const LoraProjection> projections, bool accumulate_input,
                              TensorView scratch);
void dora_row_norms_cpu(TensorView norms, const LoraProjection& projection, TensorView scratch);

}  // namespace flashloom
