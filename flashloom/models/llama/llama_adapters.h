#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/function_ref.h"
#include "flashloom/core/memory_plan.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_weights.h"
#include "flashloom/models/parameter.h"
#include "flashloom/ops/lora_linear/lora_linear.h"

namespace flashloom {

/// Which linears of every layer get an adapter, and of what size.
struct LoraOptions {
  int64_t rank = 16;
  double alpha = 32;
  /// True for each LlamaLinear that is adapted.
  std::array<bool, kLlamaLinears> targets = {true, true, true, true, true, true, true};
  bool rank_stabilized = false;  // rsLoRA (Kalajdzievski 2023)
  /// The layers that are adapted, ascending; empty: all.
  std::vector<int64_t> layers = {};
  bool dora = false;  // magnitudes (Liu et al. 2024)

  /// The factor of B A: alpha / rank, or alpha / sqrt(rank).
  float scale() const {
    const auto size = static_cast<double>(rank);
    return static_cast<float>(alpha / (rank_stabilized ? std::sqrt(size) : size));
  }

  bool adapts(LlamaLinear linear) const { return targets[static_cast<size_t>(linear)]; }

  bool adapts_layer(int64_t index) const {
    return layers.empty() || std::binary_search(layers.begin(), layers.end(), index);
  }
};

/// Targets by name, "q_proj" or "q". Throws InvalidArgument for a name that is no linear of a
/// layer, or for none at all.
std::array<bool, kLlamaLinears> parse_lora_targets(std::span<const std::string> names);

/// The same adapters without those of frozen layers. Throws InvalidArgument if none is left, or if
/// anything but layers is frozen: adapters are all that LoRA trains.
LoraOptions without_frozen_layers(const LoraOptions& lora, const LlamaFrozen& frozen,
                                  const ModelConfig& config);

/// A and B of one linear; both absent where it is not adapted.
struct LlamaAdapter {
  TensorView a;               // (R, K)
  TensorView b;               // (N, R)
  TensorView magnitude = {};  // (N), with DoRA
};

struct LlamaLayerAdapters {
  std::array<LlamaAdapter, kLlamaLinears> value;
  std::array<LlamaAdapter, kLlamaLinears> gradient;  // absent unless trained
  std::array<TensorView, kLlamaLinears> row_norms;   // (N), with DoRA: of the adapted weights
};

/// The low-rank adapters of all layers: y = x W^T + alpha / R (x A^T) B^T. A of q, k and v (and of
/// gate and up) stand in one tensor, so that one product serves the group. With DoRA, outputs are
/// scaled by magnitude / row norm; the norms are those of the last update_norms().
class LlamaAdapters {
 public:
  LlamaAdapters() = default;
  LlamaAdapters(const ModelConfig& config, const LoraOptions& options, bool trainable,
                MemoryPlan& plan);

  void bind(const Arena& arena);

  /// A from U(-1/sqrt(K), 1/sqrt(K)) (Kaiming uniform with a = sqrt(5), as peft), B zero,
  /// magnitudes the norms of the weights' rows.
  void initialize(uint64_t seed, const LlamaWeights& weights);

  /// W += scale B A for every adapted linear, rows scaled as DoRA has it, then B = 0: the model
  /// stays what it is. Throws InvalidArgument for weights in blocks.
  void merge_into(const LlamaWeights& weights);

  /// What follows from weights, A and B: with DoRA, the row norms. Nothing else needs it.
  void update_norms(const LlamaWeights& weights) const;

  bool empty() const { return ids_.empty(); }

  const LoraOptions& options() const { return options_; }

  /// All adapters absent if there are none.
  const LlamaLayerAdapters& layer(int64_t index) const {
    return empty() ? none_ : layers_[static_cast<size_t>(index)];
  }

  /// Appends A, B and magnitude of each linear under peft's names.
  void append_parameters(std::vector<Parameter>& parameters) const;

 private:
  using FindView = FunctionRef<TensorView(MemoryPlan::Id)>;

  std::vector<LlamaLayerAdapters> views(FindView find) const;
  void clear_b();
  void reset_magnitudes(const LlamaWeights& weights) const;

  struct GroupIds {
    MemoryPlan::Id a, da;
  };

  struct LayerIds {
    std::array<GroupIds, kLlamaGroups> groups;
    std::array<MemoryPlan::Id, kLlamaLinears> b, db;
    std::array<MemoryPlan::Id, kLlamaLinears> magnitude, dmagnitude, norms;
  };

  LoraOptions options_;
  bool trainable_ = false;
  std::vector<LayerIds> ids_;
  std::vector<LlamaLayerAdapters> layers_;
  LlamaLayerAdapters none_;
  MemoryPlan::Id scratch_id_ = -1;  // of row norms
  TensorView scratch_;
};

}  // namespace flashloom
