#pragma once

#include <cstdint>

#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_adapters.h"
#include "flashloom/models/llama/llama_frozen.h"

namespace flashloom {

/// What a step worked on.
struct LlamaWork {
  int64_t tokens = 0;         // rows that went through the layers
  int64_t loss_tokens = 0;    // rows that went through the head
  int64_t visible_pairs = 0;  // sum over documents of length (length + 1) / 2
};

/// Floating point operations (a multiplication and an addition are two) of a model's matrix
/// products, for utilisation figures. Per layer and token a linear of P = N K weights costs 2 P
/// forward, 2 P for the gradient of its input and 2 P for that of its weight; attention costs 4 H D
/// a visible pair forward and twice that backward; the head costs 2 V C a loss-bearing row,
/// likewise. Frozen weights have no weight gradient, and adapters of A and B add their own 2 R (K +
/// N). Recomputation is not counted, nor is anything that is no matrix product.
double llama_forward_flops(const ModelConfig& config, const LoraOptions* lora,
                           const LlamaWork& work);

/// Forward and backward of a training step. The backward pass ends at the lowest layer that is
/// trained; `frozen` is for training without adapters.
double llama_training_flops(const ModelConfig& config, const LoraOptions* lora,
                            const LlamaWork& work, const LlamaFrozen& frozen = {});

}  // namespace flashloom
