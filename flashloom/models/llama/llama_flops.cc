#include "flashloom/models/llama/llama_flops.h"

#include <fmt/format.h>

#include "flashloom/models/llama/llama.h"
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

/// Of the forward pass of one layer: scores and weighted values, 2 D each for a pair and head.
double attention_flops(const ModelConfig& config, const LlamaWork& work) {
  return 4.0 * static_cast<double>(config.heads * config.head_dim) *
         static_cast<double>(work.visible_pairs);
}

/// Adapted layers of all.
double adapted_layers(const ModelConfig& config, const LoraOptions* lora) {
  return static_cast<double>(lora == nullptr || lora->layers.empty()
                                 ? config.layers
                                 : static_cast<int64_t>(lora->layers.size()));
}

/// Numbers of the layer's linears that are trained, without adapters.
double trained_linears(const ModelConfig& config, const LlamaFrozen& frozen, int64_t layer) {
  double size = 0;
  for (size_t i = 0; i < kLlamaLinears; ++i) {
    const auto linear = static_cast<LlamaLinear>(i);
    const auto [outputs, inputs] = llama_linear_shape(config, linear);
    if (!frozen.tensor(
            fmt::format("model.layers.{}.{}.weight", layer, llama_linear_name(linear)))) {
      size += static_cast<double>(outputs) * static_cast<double>(inputs);
    }
  }
  return size;
}

}  // namespace

double llama_forward_flops(const ModelConfig& config, const LoraOptions* lora,
                           const LlamaWork& work) {
  const LayerSize size = layer_size(config, lora);
  const auto layers = static_cast<double>(config.layers);
  return 2.0 * (layers * size.linears + adapted_layers(config, lora) * size.adapters) *
             static_cast<double>(work.tokens) +
         2.0 * head_size(config) * static_cast<double>(work.loss_tokens) +
         layers * attention_flops(config, work);
}

double llama_training_flops(const ModelConfig& config, const LoraOptions* lora,
                            const LlamaWork& work, const LlamaFrozen& frozen) {
  const LayerSize size = layer_size(config, lora);
  const int64_t lowest = llama_lowest_trained_layer(
      config, lora != nullptr ? std::optional(*lora) : std::nullopt, frozen);
  double linears = 0, attention = 0;  // of the backward pass
  for (int64_t n = 0; n < config.layers; ++n) {
    linears += n >= lowest ? size.linears : 0;  // for their inputs
    if (lora == nullptr) {
      linears += trained_linears(config, frozen, n);  // for their weights
    } else if (lora->adapts_layer(n)) {
      linears += 2 * size.adapters;  // for both
    }
    attention += n >= lowest ? 2 * attention_flops(config, work) : 0;
  }
  const bool head_trained =
      lora == nullptr &&
      !frozen.tensor(config.tied_embeddings ? kLlamaEmbeddingName : kLlamaHeadName);
  const double head = (head_trained ? 2 : 1) * head_size(config);
  return llama_forward_flops(config, lora, work) +
         2.0 * linears * static_cast<double>(work.tokens) +
         2.0 * head * static_cast<double>(work.loss_tokens) + attention;
}

}  // namespace flashloom
