#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/block_format.h"
#include "flashloom/core/function_ref.h"
#include "flashloom/core/memory_plan.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_frozen.h"
#include "flashloom/models/parameter.h"

namespace flashloom {

class ModelFiles;

/// The seven linears of a layer.
enum class LlamaLinear : uint8_t { q, k, v, o, gate, up, down };

inline constexpr size_t kLlamaLinears = 7;

/// Linears that read the same input.
enum class LlamaGroup : uint8_t { qkv, o, gate_up, down };

inline constexpr size_t kLlamaGroups = 4;

/// First linear of each group and the number behind the last one.
struct LlamaGroupRange {
  size_t first, end;
};

constexpr LlamaGroupRange llama_group_range(LlamaGroup group) {
  constexpr std::array<LlamaGroupRange, kLlamaGroups> kRanges = {{{0, 3}, {3, 4}, {4, 6}, {6, 7}}};
  return kRanges[static_cast<size_t>(group)];
}

/// Names of the tensors outside the layers that files have.
inline constexpr std::string_view kLlamaEmbeddingName = "model.embed_tokens.weight";
inline constexpr std::string_view kLlamaHeadName = "lm_head.weight";

/// "self_attn.q_proj", …: what stands between "model.layers.N." and ".weight".
std::string_view llama_linear_name(LlamaLinear linear);

/// (out, in) of a linear's weight.
struct LlamaLinearShape {
  int64_t outputs, inputs;
};

LlamaLinearShape llama_linear_shape(const ModelConfig& config, LlamaLinear linear);

/// Whether the linear has a bias in this model.
bool llama_linear_has_bias(const ModelConfig& config, LlamaLinear linear);

/// A tensor of a model as files have it.
struct LlamaTensorSize {
  std::string name;
  int64_t size;                  // numbers
  std::optional<int64_t> layer;  // that it belongs to
};

/// The layer in a tensor's name, if there is one.
std::optional<int64_t> llama_layer_of(std::string_view tensor);

/// All of them, in the order of a file; a head that is the embedding is not named twice.
std::vector<LlamaTensorSize> llama_tensor_sizes(const ModelConfig& config);

/// The blocks that linears stay in (QLoRA), by layer; null: plain numbers. Empty: all of them are.
using LlamaBlockFormats = std::vector<std::array<const BlockFormat*, kLlamaLinears>>;

/// Those of a file: of every linear that it stores quantised; empty if there is none.
LlamaBlockFormats llama_block_formats(const ModelFiles& files);

struct LlamaLayerWeights {
  TensorView attention_norm;                      // (C)
  std::array<TensorView, kLlamaLinears> linear;   // (N, K); q, k, v neighbours, gate, up too
  std::array<BlockMatrix, kLlamaLinears> blocks;  // instead of that
  std::array<TensorView, kLlamaLinears> bias;     // (N), absent where the model has none
  TensorView q_norm, k_norm;                      // (D), absent without QK norm
  TensorView ffn_norm;                            // (C)
};

/// Weights, or their gradients: the same tensors.
struct LlamaTensors {
  TensorView embedding;  // (V, C)
  std::vector<LlamaLayerWeights> layers;
  TensorView final_norm;  // (C)
  TensorView head;        // (V, C): the embedding itself if they are tied
};

/// All weights of a model and, for full fine-tuning, their gradients, in f32. Matrices may be
/// stored as bf16; the products that read them compute in f32.
class LlamaWeights {
 public:
  LlamaWeights() = default;
  /// Gradients are planned if `trainable`, but for what is frozen. Weights in blocks cannot be
  /// trained.
  LlamaWeights(const ModelConfig& config, bool trainable, DType matrices, MemoryPlan& plan,
               const LlamaFrozen& frozen = {}, const LlamaBlockFormats& blocks = {});

  void bind(const Arena& arena);

  /// Reads every tensor by its Hugging Face name, rounded to nearest where it is stored in fewer
  /// bits. Throws IoError naming the tensor if one is
  /// missing, has another shape (expected and actual) or holds NaN or infinity.
  void load(const ModelFiles& files);

  const LlamaTensors& values() const { return values_; }

  /// Views are absent unless trained.
  const LlamaTensors& gradients() const { return gradients_; }

  /// Whether anything in the layer is trained.
  bool trains_layer(int64_t index) const;

  bool trainable() const { return trainable_; }

  /// Appends every tensor once (a tied head is the embedding) under its Hugging Face name; none of
  /// those in blocks.
  void append_parameters(std::vector<Parameter>& parameters) const;

 private:
  struct LayerIds {
    MemoryPlan::Id attention_norm, q_norm, k_norm, ffn_norm;
    std::array<MemoryPlan::Id, kLlamaGroups> weights, biases;  // of linears that are neighbours
    std::array<MemoryPlan::Id, kLlamaLinears> blocks;
  };

  struct Ids {
    MemoryPlan::Id embedding, final_norm, head;
    std::vector<LayerIds> layers;
  };

  using FindView = FunctionRef<TensorView(MemoryPlan::Id)>;

  Ids plan(MemoryPlan& plan, MemoryKind kind, DType matrices, std::string_view suffix,
           const LlamaFrozen& left_out) const;
  LlamaTensors views(FindView find, const Ids& ids, const LlamaFrozen& left_out) const;

  /// Null where the linear's weight is plain numbers.
  const BlockFormat* block_format(size_t layer, size_t linear) const {
    return formats_.empty() ? nullptr : formats_[layer][linear];
  }

  ModelConfig config_;
  LlamaFrozen frozen_;
  LlamaBlockFormats formats_;
  const Arena* arena_ = nullptr;
  bool trainable_ = false;
  Ids value_ids_;
  Ids gradient_ids_;
  LlamaTensors values_;
  LlamaTensors gradients_;
};

}  // namespace flashloom
