#pragma once

#include <array>
#include <span>

#include "flashloom/core/tensor_view.h"
#include "flashloom/models/llama/llama_layer.h"

namespace flashloom {

/// The linears of a group with their adapters, applied to one input: y[i] = linear_i(x).
/// `lora_hidden` is absent if none of them has an adapter.
void llama_projection_forward(std::span<const TensorView> y, TensorView lora_hidden,
                              ConstTensorView x, const LlamaLayer& layer, LlamaGroup group);

/// Adds to the gradients of the group's weights or adapters, whichever are trained, and writes dx
/// unless it is absent. `x` is read only if a weight or adapter in the group is trained. With DoRA,
/// `dora_products` (T, outputs of the group, or more) is scratch.
void llama_projection_backward(TensorView dx, std::span<const ConstTensorView> dy,
                               ConstTensorView x, ConstTensorView lora_hidden,
                               TensorView dlora_hidden, TensorView dora_products,
                               const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                               LlamaGroup group);

/// Whether llama_projection_backward() would read x.
bool llama_projection_reads_input(const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                                  LlamaGroup group);

/// Whether it has anything to add gradients to: what would make it read x, or biases.
bool llama_projection_trains(const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                             LlamaGroup group);

}  // namespace flashloom
