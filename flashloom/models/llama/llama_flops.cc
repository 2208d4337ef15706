#include "flashloom/models/llama/llama_flops.h"

#include "flashloom/models/llama/llama_weights.h"

namespace flashloom {
namespace {

/// Weights of one layer's linears, and of its adapters.
struct LayerSize {
  double linears = 0;
  double adapters = 0;
};

LayerSize layer_size(const ModelConfig& config, const LoraOptions* lora) {
  LayerSize size;
  for (size_t i = 0; i < kLlamaLinears; ++i) {
    const auto linear = static_cast<LlamaLinear>(i);
    const auto [outputs, inputs] = llama_linear_shape(config, linear);
    size.linears += static_cast<double>(outputs) * static_cast<double>(inputs);
    if (lora != nullptr && lora->adapts(linear)) {
      size.adapters += static_cast<double>(lora->rank) * static_cast<double>(outputs + inputs);
    }
  }
  return size;
}

double head_size(const ModelConfig& config) {
  return static_cast<double>(config.vocabulary_size) * static_cast<double>(config.hidden_size);
}

/// Of the forward pass: scores and weighted values, 2 D each for a pair and head.
double attention_flops(const ModelConfig& config, const LlamaWork& work) {
  return 4.0 * static_cast<double>(config.layers * config.heads * config.head_dim) *
         static_cast<double>(work.visible_pairs);
}

}  // namespace

double llama_forward_flops(const ModelConfig& config, const LoraOptions* lora,
                           const LlamaWork& work) {
  const LayerSize size = layer_size(config, lora);
  return 2.0 * static_cast<double>(config.layers) * (size.linears + size.adapters) *
             static_cast<double>(work.tokens) +
         2.0 * head_size(config) * static_cast<double>(work.loss_tokens) +
         attention_flops(config, work);
}

double llama_training_flops(const ModelConfig& config, const LoraOptions* lora,
                            const LlamaWork& work) {
  const LayerSize size = layer_size(config, lora);
  const double frozen_passes = lora != nullptr ? 2 : 3;  // no weight gradient
  const double layers = static_cast<double>(config.layers);
  return 2.0 * layers * (frozen_passes * size.linears + 3 * size.adapters) *
             static_cast<double>(work.tokens) +
         2.0 * frozen_passes * head_size(config) * static_cast<double>(work.loss_tokens) +
         3.0 * attention_flops(config, work);
}

}  // namespace flashloom
