#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "flashloom/core/tensor_view.h"
#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_activations.h"
#include "flashloom/models/llama/llama_adapters.h"
#include "flashloom/models/llama/llama_recompute.h"
#include "flashloom/models/llama/llama_weights.h"

namespace flashloom {

/// One layer's parameters.
struct LlamaLayer {
  const ModelConfig& config;
  const LlamaLayerWeights& weights;
  const LlamaLayerAdapters& adapters;
  float adapter_scale = 1;
  ConstTensorView rope_frequencies;  // (D / 2)

  bool group_has_adapter(LlamaGroup group) const;
};

/// Who sees whom. Either packed documents, or (with a cache) the next tokens of one sequence.
struct LlamaSequences {
  ConstTensorView positions;   // (T) i32
  ConstTensorView cu_seqlens;  // (documents + 1) i32
  int64_t max_length = 0;
  TensorView cached_k, cached_v;  // (capacity, G D): this layer's cache, takes the new rows
  int64_t cached_tokens = 0;      // rows of the cache before these tokens
};

/// residual stream += attention(norm(stream)); stream += ffn(norm(stream)).
///
/// With `residual` (the previous layer's `middle`), the stream before this layer is that plus
/// workspace.branch, and is written to activations.input; without, it is what stands there. Leaves
/// the layer's last addend in workspace.branch.
void llama_layer_forward(const LlamaLayerActivations& activations, const LlamaWorkspace& workspace,
                         const LlamaLayer& layer, const LlamaSequences& sequences,
                         ConstTensorView residual);

/// Its stages, for passes that stop between them or do one again. Up to attention's output;
void llama_attention_forward(const LlamaLayerActivations& activations,
                             const LlamaWorkspace& workspace, const LlamaLayer& layer,
                             const LlamaSequences& sequences, ConstTensorView residual);

/// from there to gate and up, uses workspace.branch;
void llama_gate_up_forward(const LlamaLayerActivations& activations,
                           const LlamaWorkspace& workspace, const LlamaLayer& layer);

/// and the last addend, into workspace.branch.
void llama_down_forward(const LlamaLayerActivations& activations, const LlamaWorkspace& workspace,
                        const LlamaLayer& layer);

/// What is trained in a layer, and how far back its input's gradient is wanted.
struct LlamaLayerGradients {
  const LlamaLayerWeights* weights = nullptr;    // frozen tensors are absent; null: all are
  const LlamaLayerAdapters* adapters = nullptr;  // null: none are trained
  bool input = true;                             // false: nothing trained lies before this layer
};

/// Sees what each operation of a backward pass has made, gradients of inputs and of parameters;
/// absent ones among them.
using LlamaWatch = std::function<void(std::string_view operation, std::span<const TensorView>)>;

/// workspace.dstream holds the gradient of the stream behind the layer, and receives that of the
/// stream before it. Uses up the activations. Gradients of parameters are added to. `lost` says
/// which activations were overwritten since the forward pass and are computed again first.
void llama_layer_backward(const LlamaLayerActivations& activations, const LlamaWorkspace& workspace,
                          const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                          const LlamaSequences& sequences, LlamaRecompute lost,
                          const LlamaWatch& watch = {});

}  // namespace flashloom
