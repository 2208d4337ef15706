#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flashloom/core/memory_plan.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_activations.h"
#include "flashloom/models/llama/llama_adapters.h"
#include "flashloom/models/llama/llama_frozen.h"
#include "flashloom/models/llama/llama_layer.h"
#include "flashloom/models/llama/llama_noise.h"
#include "flashloom/models/llama/llama_recompute.h"
#include "flashloom/models/llama/llama_rope.h"
#include "flashloom/models/llama/llama_weights.h"
#include "flashloom/models/parameter.h"

namespace flashloom {

class ModelFiles;

/// A packed micro-batch: documents one after another; none sees another.
struct LlamaBatch {
  ConstTensorView tokens;      // (T) i32
  ConstTensorView positions;   // (T) i32, from 0 in each document
  ConstTensorView labels;      // (T) i32, already shifted; kIgnoredLabel bears no loss
  ConstTensorView cu_seqlens;  // (documents + 1) i32: 0, ends of the documents; the last is T
  int64_t max_length = 0;      // longest document, or a bound of it
  EmbeddingNoise noise = {};   // of loss_and_gradients alone
};

/// As the layers take it.
LlamaSequences llama_sequences(const LlamaBatch& batch);

/// A decoder of the Llama family (Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3): explicit forward
/// and backward passes over planned buffers. Life: construct (adds every buffer to the plan), make
/// an Arena, bind(), load(), then steps, which allocate nothing. Set the number of threads before:
/// workspaces grow with it.
///
/// Trained are the adapters if there are any (LoRA), else all weights.
class LlamaModel {
 public:
  struct Options {
    bool training = false;  // plans gradients and the activations that backward needs
    std::optional<LoraOptions> lora = {};  // adapters
    LlamaFrozen frozen = {};               // without adapters: what is not trained
    DType weight_dtype = DType::f32;       // of matrices, as they are stored: f32 or bf16
    LlamaBlockFormats blocks = {};         // linears that stay as the file has them (QLoRA)
    LlamaRecompute recompute = LlamaRecompute::norms;  // the same bits at every level
    int64_t max_tokens = 0;                            // of a micro-batch, all documents together
    int64_t max_sequence_length = 0;                   // of a document; 0: max_tokens
    int64_t max_sequences = 0;                         // documents of a micro-batch; 0: max_tokens
  };

  LlamaModel(const ModelConfig& config, const Options& options, MemoryPlan& plan);

  /// The arena of that plan. It must outlive the model and stay where it is.
  void bind(const Arena& arena);

  /// Reads all weights. Throws IoError naming the tensor.
  void load(const ModelFiles& files) { weights_.load(files); }

  /// Fresh adapters: A random, B zero, so that the model is unchanged. Nothing without adapters.
  void initialize_adapters(uint64_t seed) { adapters_.initialize(seed, weights_); }

  /// To be called when A or B has changed: with DoRA, norms follow from them. They count as
  /// constants of a step: passes use those of the last call.
  void refresh_adapters() const { adapters_.update_norms(weights_); }

  /// Adds the adapters to the weights and sets their B to zero: the model stays what it is.
  void merge_adapters() { adapters_.merge_into(weights_); }

  /// Forward and backward. Gradients, each loss's times `gradient_scale` (1 / loss-bearing tokens
  /// of the whole optimizer step), are added to what zero_gradients() and earlier micro-batches
  /// left. Returns the sum of the losses, in nats. Throws InvalidArgument for a batch that is
  /// malformed or larger than planned, or a token or label outside the vocabulary.
  double loss_and_gradients(const LlamaBatch& batch, float gradient_scale) {
    return loss_and_gradients(batch, gradient_scale, {});
  }

  /// The same sum of losses without gradients, in one layer's buffers.
  double evaluate(const LlamaBatch& batch);

  /// The operation that first leaves the finite numbers with this batch, for a human ("layer 3:
  /// v_proj", "layer 3: the gradients of v_proj"); empty if none does. With options().training the
  /// backward pass is looked at too, and gradients are overwritten.
  std::string first_non_finite(const LlamaBatch& batch);

  /// Loss of each token of the last batch, (T) f32; 0 where none is borne.
  ConstTensorView token_losses() const { return token_losses_; }

  /// Logits (T, V) f32 of every token; labels are not needed. Large: for tests and inspection.
  void logits(TensorView out, const LlamaBatch& batch);

  void zero_gradients();

  /// All weights, then all adapters. Before bind() they have shapes, but no memory.
  std::span<const Parameter> parameters() const { return parameters_; }

  const ModelConfig& config() const { return config_; }

  /// As given, with the defaults filled in.
  const Options& options() const { return options_; }

  const LlamaWeights& weights() const { return weights_; }

  const LlamaAdapters& adapters() const { return adapters_; }

  /// Parameters of one layer, for passes of one's own (the generator's).
  LlamaLayer layer(int64_t index) const;

 private:
  // Tells `watch`, if there is one, what each operation of the backward pass has made.
  double loss_and_gradients(const LlamaBatch& batch, float gradient_scale, const LlamaWatch& watch);
  ConstTensorView forward(const LlamaBatch& batch, bool save);
  double sum_of_losses(int64_t tokens);
  void check_batch(const LlamaBatch& batch, bool labels) const;

  ModelConfig config_;
  Options options_;
  LlamaWeights weights_;
  LlamaAdapters adapters_;
  LlamaRope rope_;
  LlamaActivations activations_;
  int64_t lowest_trained_layer_ = 0;
  std::vector<Parameter> parameters_;
  MemoryPlan::Id token_losses_id_ = -1;
  TensorView token_losses_;
  const Arena* arena_ = nullptr;
};

/// The first layer that anything trained is in or before: layers below it keep no activations and
/// have no backward pass. The number of layers if there is none.
int64_t llama_lowest_trained_layer(const ModelConfig& config,
                                   const std::optional<LoraOptions>& lora,
                                   const LlamaFrozen& frozen = {});

/// Numbers that training changes: all weights that are not frozen, or the adapters if there are
/// any.
int64_t llama_trainable_size(const ModelConfig& config, const std::optional<LoraOptions>& lora,
                             const LlamaFrozen& frozen = {});

}  // namespace flashloom
