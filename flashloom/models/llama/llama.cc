#include "flashloom/models/llama/llama.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "flashloom/core/check.h"
#include "flashloom/models/llama/llama_layer.h"
#include "flashloom/ops/embedding/embedding.h"
#include "flashloom/ops/linear/linear.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "flashloom/ops/rms_norm/rms_norm.h"

namespace flashloom {

LlamaSequences llama_sequences(const LlamaBatch& batch) {
  LlamaSequences sequences;
  sequences.positions = batch.positions;
  sequences.cu_seqlens = batch.cu_seqlens;
  sequences.max_length = batch.max_length;
  return sequences;
}

LlamaModel::LlamaModel(const ModelConfig& config, const Options& options, MemoryPlan& plan)
    : config_(config), options_(options) {
  check(options.max_tokens >= 0, "LlamaModel", "max_tokens", "0 or more",
        fmt::format("{}", options.max_tokens));
  if (options_.max_sequence_length <= 0) {
    options_.max_sequence_length = options_.max_tokens;
  }
  options_.max_sequence_length = std::min(options_.max_sequence_length, options_.max_tokens);
  if (options_.max_sequences <= 0) {
    options_.max_sequences = options_.max_tokens;
  }
  weights_ = LlamaWeights(config, options.training && !options.lora, options.weight_dtype, plan,
                          options.frozen, options.blocks);
  if (options.lora) {
    adapters_ = LlamaAdapters(config, *options.lora, options.training, plan);
  }
  lowest_trained_layer_ =
      options.training ? llama_lowest_trained_layer(config, options.lora, options.frozen) : 0;
  weights_.append_parameters(parameters_);
  adapters_.append_parameters(parameters_);
  rope_ = LlamaRope(config, plan);
  if (options_.max_tokens > 0) {
    activations_ = LlamaActivations(config, adapters_,
                                    {.training = options.training,
                                     .trains_head = static_cast<bool>(weights_.gradients().head),
                                     .lowest_layer = lowest_trained_layer_,
                                     .recompute = options.recompute,
                                     .max_tokens = options_.max_tokens,
                                     .max_length = options_.max_sequence_length,
                                     .max_sequences = options_.max_sequences},
                                    plan);
    token_losses_id_ =
        plan.add("token_losses", MemoryKind::data, DType::f32, {options_.max_tokens});
  }
}

void LlamaModel::bind(const Arena& arena) {
  weights_.bind(arena);
  adapters_.bind(arena);
  rope_.bind(arena, config_);
  activations_.bind(arena);
  arena_ = &arena;
  parameters_.clear();
  weights_.append_parameters(parameters_);
  adapters_.append_parameters(parameters_);
}

void LlamaModel::zero_gradients() {
  for (const Parameter& parameter : parameters_) {
    if (parameter.trainable()) {
      std::memset(parameter.gradient.data, 0, static_cast<size_t>(parameter.gradient.bytes()));
    }
  }
}

LlamaLayer LlamaModel::layer(int64_t index) const {
  return {.config = config_,
          .weights = weights_.values().layers[static_cast<size_t>(index)],
          .adapters = adapters_.layer(index),
          .adapter_scale = adapters_.options().scale(),
          .rope_frequencies = rope_.frequencies()};
}

void LlamaModel::check_batch(const LlamaBatch& batch, bool labels) const {
  constexpr std::string_view kOp = "LlamaModel";
  const int64_t tokens = batch.tokens.rank == 1 ? batch.tokens.dim(0) : 0;
  check(tokens >= 1 && tokens <= options_.max_tokens, kOp, "tokens",
        fmt::format("(T) with T in 1 to the planned {}", options_.max_tokens),
        describe(batch.tokens));
  check_dtype(kOp, "tokens", batch.tokens, {DType::i32});
  check_shape(kOp, "positions", batch.positions, {tokens});
  check_dtype(kOp, "positions", batch.positions, {DType::i32});
  if (labels) {
    check_shape(kOp, "labels", batch.labels, {tokens});
    check_dtype(kOp, "labels", batch.labels, {DType::i32});
  }
  check(batch.max_length >= 1 && batch.max_length <= options_.max_sequence_length, kOp,
        "max_length", fmt::format("1 to the planned {}", options_.max_sequence_length),
        fmt::format("{}", batch.max_length));
  check_shape(kOp, "cu_seqlens", batch.cu_seqlens, {kAnySize});
  check_dtype(kOp, "cu_seqlens", batch.cu_seqlens, {DType::i32});
  check_contiguous(kOp, "cu_seqlens", batch.cu_seqlens);
  const int64_t documents = batch.cu_seqlens.dim(0) - 1;
  check(documents >= 1 && documents <= options_.max_sequences, kOp, "cu_seqlens",
        fmt::format("2 to {} entries", options_.max_sequences + 1), describe(batch.cu_seqlens));
  const int32_t* bounds = batch.cu_seqlens.as<int32_t>();
  check(bounds[0] == 0 && bounds[documents] == tokens, kOp, "cu_seqlens",
        fmt::format("0 first and {} last", tokens),
        fmt::format("{} first and {} last", bounds[0], bounds[documents]));
  for (int64_t d = 0; d < documents; ++d) {
    const int64_t length = int64_t{bounds[d + 1]} - bounds[d];
    check(length >= 0 && length <= batch.max_length, kOp, "cu_seqlens",
          fmt::format("documents of 0 to max_length = {} tokens", batch.max_length),
          fmt::format("{} in document {}", length, d));
  }
}

ConstTensorView LlamaModel::forward(const LlamaBatch& batch, bool save) {
  const int64_t tokens = batch.tokens.dim(0);
  const LlamaWorkspace workspace = activations_.workspace(tokens);
  const LlamaSequences sequences = llama_sequences(batch);
  ConstTensorView residual;
  for (int64_t n = 0; n < config_.layers; ++n) {
    const LlamaLayerActivations activations = activations_.layer(n, tokens, save);
    if (n == 0) {
      embedding_forward(activations.input, weights_.values().embedding, batch.tokens);
      if (save && batch.noise.alpha > 0) {
        add_embedding_noise(activations.input, batch.cu_seqlens, batch.noise);
      }
    }
    llama_layer_forward(activations, workspace, layer(n), sequences, residual);
    residual = activations.middle;
  }
  rms_norm_forward(workspace.normed, workspace.final_rms, workspace.final_input, workspace.branch,
                   residual, weights_.values().final_norm, {.epsilon = config_.rms_norm_epsilon});
  return workspace.normed;
}

double LlamaModel::sum_of_losses(int64_t tokens) {
  token_losses_ = (*arena_)[token_losses_id_].slice(0, 0, tokens);
  const float* losses = token_losses_.as<float>();
  double sum = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    sum += losses[t];
  }
  return sum;
}

double LlamaModel::evaluate(const LlamaBatch& batch) {
  check_batch(batch, /*labels=*/true);
  const int64_t tokens = batch.tokens.dim(0);
  const ConstTensorView hidden = forward(batch, /*save=*/false);
  linear_cross_entropy((*arena_)[token_losses_id_].slice(0, 0, tokens), {}, {}, hidden,
                       weights_.values().head, batch.labels, activations_.workspace(tokens).loss);
  return sum_of_losses(tokens);
}

void LlamaModel::logits(TensorView out, const LlamaBatch& batch) {
  check_batch(batch, /*labels=*/false);
  check_shape("LlamaModel::logits", "out", out, {batch.tokens.dim(0), config_.vocabulary_size});
  linear_forward(out, forward(batch, /*save=*/false), weights_.values().head);
}

double LlamaModel::loss_and_gradients(const LlamaBatch& batch, float gradient_scale,
                                      const LlamaWatch& watch) {
  check(options_.training, "LlamaModel::loss_and_gradients", "options.training", "true", "false");
  check_batch(batch, /*labels=*/true);
  const int64_t tokens = batch.tokens.dim(0);
  const LlamaWorkspace workspace = activations_.workspace(tokens);
  const LlamaTensors& dweights = weights_.gradients();
  const bool full = weights_.trainable();

  const ConstTensorView hidden = forward(batch, /*save=*/true);
  const TensorView dhidden = workspace.branch;
  linear_cross_entropy((*arena_)[token_losses_id_].slice(0, 0, tokens), dhidden, dweights.head,
                       hidden, weights_.values().head, batch.labels, workspace.loss,
                       {.gradient_scale = gradient_scale});
  const auto tell = [&](std::string_view operation, std::initializer_list<TensorView> made) {
    if (watch) {
      watch(operation, {made.begin(), made.size()});
    }
  };
  tell("the head", {dhidden, dweights.head});
  rms_norm_backward(workspace.dstream, dweights.final_norm, dhidden, {}, workspace.final_input,
                    workspace.final_rms, weights_.values().final_norm, workspace.norm_backward);
  tell("the final norm", {workspace.dstream, dweights.final_norm});

  const int64_t lowest = lowest_trained_layer_;
  for (int64_t n = config_.layers - 1; n >= lowest; --n) {
    const bool trained = weights_.trains_layer(n);
    const LlamaLayerWeights* weights = trained ? &dweights.layers[static_cast<size_t>(n)] : nullptr;
    const LlamaLayerGradients gradients = {
        .weights = weights,
        .adapters = full ? nullptr : &adapters_.layer(n),
        // The first norm's own gradient comes with that of the input.
        .input = n > lowest || dweights.embedding || (trained && weights->attention_norm)};
    // The last layer's activations are still in the buffers that all share.
    const LlamaRecompute lost = n + 1 < config_.layers ? options_.recompute : LlamaRecompute::norms;
    llama_layer_backward(activations_.layer(n, tokens, /*save=*/true), workspace, layer(n),
                         gradients, llama_sequences(batch), lost,
                         watch ? LlamaWatch([&](std::string_view operation, auto made) {
                           watch(fmt::format("layer {}: {}", n, operation), made);
                         })
                               : LlamaWatch());
  }
  if (dweights.embedding) {
    embedding_backward(dweights.embedding, workspace.dstream, batch.tokens);
    tell("the embedding", {dweights.embedding});
  }
  return sum_of_losses(tokens);
}

int64_t llama_lowest_trained_layer(const ModelConfig& config,
                                   const std::optional<LoraOptions>& lora,
                                   const LlamaFrozen& frozen) {
  if (lora) {
    return lora->layers.empty() ? 0 : lora->layers.front();
  }
  if (!frozen.tensor(kLlamaEmbeddingName)) {
    return 0;
  }
  int64_t lowest = config.layers;
  for (const LlamaTensorSize& tensor : llama_tensor_sizes(config)) {
    if (tensor.layer && !frozen.tensor(tensor.name)) {
      lowest = std::min(lowest, *tensor.layer);
    }
  }
  return lowest;
}

int64_t llama_trainable_size(const ModelConfig& config, const std::optional<LoraOptions>& lora,
                             const LlamaFrozen& frozen) {
  if (!lora) {
    int64_t size = 0;
    for (const LlamaTensorSize& tensor : llama_tensor_sizes(config)) {
      size += frozen.tensor(tensor.name) ? 0 : tensor.size;
    }
    return size;
  }
  int64_t layer = 0;
  for (size_t i = 0; i < kLlamaLinears; ++i) {
    const LlamaLinearShape shape = llama_linear_shape(config, static_cast<LlamaLinear>(i));
    layer += lora->targets[i]
                 ? lora->rank * (shape.inputs + shape.outputs) + (lora->dora ? shape.outputs : 0)
                 : 0;
  }
  return layer * static_cast<int64_t>(lora->layers.empty() ? static_cast<size_t>(config.layers)
                                                           : lora->layers.size());
}

}  // namespace flashloom
