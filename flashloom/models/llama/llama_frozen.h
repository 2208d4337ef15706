#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/io/model_config.h"

namespace flashloom {

/// What training leaves as it is. Frozen tensors have neither gradient nor optimizer state.
struct LlamaFrozen {
  bool embeddings = false;              // a tied head too
  bool head = false;                    // of its own
  bool norms = false;                   // the weights of all norms
  std::vector<int64_t> layers = {};     // whole layers, ascending
  std::vector<std::string> names = {};  // of tensors, "*" any characters, "?" one; ascending

  /// Whether the layer is frozen as a whole, by its number.
  bool layer(int64_t index) const;

  /// Whether the tensor of this Hugging Face name ("model.layers.3.mlp.up_proj.weight") is frozen.
  bool tensor(std::string_view name) const;

  bool any() const { return embeddings || head || norms || !layers.empty() || !names.empty(); }

  bool operator==(const LlamaFrozen&) const = default;
};

/// "embeddings", "head", "norms"; layers by number from 0, "3" or "0-11"; tensors by their Hugging
/// Face names, in which "*" stands for any characters and "?" for one ("*.k_proj.*",
/// "model.layers.3.mlp.up_proj.weight"). Throws InvalidArgument for anything else, a layer or
/// tensor that the model does not have, "head" of a model whose head is its embedding, or if
/// nothing is left to train.
LlamaFrozen parse_frozen(std::span<const std::string> names, const ModelConfig& config);

/// As parse_frozen reads it, for people and records: "embeddings, norms, 0-11"; "nothing".
std::string describe(const LlamaFrozen& frozen);

}  // namespace flashloom
