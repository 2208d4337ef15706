#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "flashloom/io/model_config.h"

namespace flashloom {

/// What training leaves as it is. Frozen tensors have neither gradient nor optimizer state.
struct LlamaFrozen {
  bool embeddings = false;           // a tied head too
  bool head = false;                 // of its own
  bool norms = false;                // the weights of all norms
  std::vector<int64_t> layers = {};  // whole layers, ascending

  bool layer(int64_t index) const;

  bool any() const { return embeddings || head || norms || !layers.empty(); }

  bool operator==(const LlamaFrozen&) const = default;
};

/// "embeddings", "head", "norms", and layers by number from 0: "3" or "0-11". Throws
/// InvalidArgument for anything else, a layer that the model does not have, "head" of a model whose
/// head is its embedding, or if nothing is left to train.
LlamaFrozen parse_frozen(std::span<const std::string> names, const ModelConfig& config);

/// As parse_frozen reads it, for people and records: "embeddings, norms, 0-11"; "nothing".
std::string describe(const LlamaFrozen& frozen);

}  // namespace flashloom
