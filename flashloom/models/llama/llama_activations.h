#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flashloom/core/memory_plan.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_adapters.h"
#include "flashloom/models/llama/llama_recompute.h"

namespace flashloom {

/// What a layer's forward pass leaves for its backward pass. What LlamaRecompute says is computed
/// again lies in buffers that all layers share, or is absent.
struct LlamaLayerActivations {
  TensorView input;                         // (T, C) residual stream before the layer
  TensorView attention_rms;                 // (T)
  TensorView q, k, v;                       // (T, H D), (T, G D), (T, G D) as attention reads them
  TensorView q_raw, k_raw;                  // before QK norm; q and k themselves without one
  TensorView q_rms, k_rms;                  // (T H), (T G), with QK norm
  TensorView attended;                      // (T, H D) output of attention
  TensorView lse;                           // (H, T)
  TensorView attention_normed, ffn_normed;  // (T, C) inputs of q, k, v and gate, up; only if kept
  TensorView ffn_hidden;                    // (T, I) output of SwiGLU; only if kept
  TensorView middle;                        // (T, C) residual stream after attention
  TensorView ffn_rms;                       // (T)
  TensorView gate, up;                      // (T, I)
  std::array<TensorView, kLlamaGroups> lora_hidden;  // (T, ranks of the group): x A^T
};

/// Buffers that all layers share. Those of one stage lie where those of another do.
struct LlamaWorkspace {
  TensorView normed;      // (T, C) input of a group of linears
  TensorView branch;      // (T, C) output of o or down; in the backward pass dnormed
  TensorView ffn_hidden;  // (T, I) output of SwiGLU
  std::span<std::byte> attention_forward;

  TensorView dstream;              // (T, C) gradient of the residual stream
  TensorView backward_ffn_hidden;  // (T, I) ffn_hidden once more
  TensorView dffn_hidden;          // (T, I)
  TensorView dattended;            // (T, H D)
  TensorView dq, dk, dv;           // like q, k, v
  TensorView dlora_hidden;         // (T, largest sum of ranks)
  TensorView dora_products;        // (T, outputs of the widest group), with DoRA
  std::span<std::byte> attention_backward;
  std::span<std::byte> norm_backward;

  TensorView final_input;  // (T, C)
  TensorView final_rms;    // (T)
  std::span<std::byte> loss;
};

/// The activations of a forward pass and, for training, of a backward pass, for micro-batches of at
/// most `max_tokens`.
class LlamaActivations {
 public:
  struct Options {
    bool training = false;  // keep each layer's activations; else all share one set
    bool loss = true;       // plan the workspace of the loss
    bool trains_head = true;
    int64_t lowest_layer = 0;  // the first that anything trained is in or before; those below keep
                               // nothing; the number of layers if there is none
    LlamaRecompute recompute = LlamaRecompute::norms;
    int64_t max_tokens = 0;
    int64_t max_length = 0;     // longest document
    int64_t max_sequences = 0;  // documents
    int64_t cached_tokens = 0;  // keys of a cache that attention reads instead of k and v
  };

  LlamaActivations() = default;
  LlamaActivations(const ModelConfig& config, const LlamaAdapters& adapters, const Options& options,
                   MemoryPlan& plan);

  void bind(const Arena& arena) { arena_ = &arena; }

  /// Views for a batch of `tokens`. Without `save`, every layer gets the same buffers; with it, its
  /// own for what is kept for the backward pass, but layers below the lowest that is trained share
  /// that one's, which comes after them.
  LlamaLayerActivations layer(int64_t index, int64_t tokens, bool save) const;
  LlamaWorkspace workspace(int64_t tokens) const;

  const Options& options() const { return options_; }

 private:
  struct LayerIds {
    MemoryPlan::Id input, attention_rms, qkv, qk_raw, qk_rms, attended, lse, middle, ffn_rms,
        gate_up, attention_normed, ffn_normed, ffn_hidden;
    std::array<MemoryPlan::Id, kLlamaGroups> lora_hidden;
  };

  LayerIds plan_layer(int64_t index, const LlamaAdapters& adapters, MemoryPlan& plan) const;
  void plan_workspaces(const LlamaAdapters& adapters, MemoryPlan& plan);
  void plan_layer_backward(const LlamaAdapters& adapters, int64_t attention_bytes,
                           MemoryPlan& plan);
  std::array<TensorView, 3> split_qkv(MemoryPlan::Id id, int64_t tokens) const;
  std::span<std::byte> bytes(MemoryPlan::Id id) const;

  ModelConfig config_;
  Options options_;
  const Arena* arena_ = nullptr;
  std::vector<LayerIds> layers_;  // from the lowest that is trained on

  struct {
    MemoryPlan::Id normed = -1, branch = -1, ffn_hidden = -1, attention_forward = -1;
    MemoryPlan::Id dstream = -1, backward_ffn_hidden = -1, dffn_hidden = -1, dattended = -1;
    MemoryPlan::Id dqkv = -1, dlora_hidden = -1, dora_products = -1, attention_backward = -1,
                   norm_backward = -1;
    MemoryPlan::Id final_input = -1, final_rms = -1, loss = -1;
  } shared_;
};

}  // namespace flashloom
