#include "flashloom/models/llama/llama_generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "flashloom/core/check.h"
#include "flashloom/models/llama/llama_layer.h"
#include "flashloom/ops/embedding/embedding.h"
#include "flashloom/ops/gemv/gemv.h"
#include "flashloom/ops/rms_norm/rms_norm.h"

namespace flashloom {

LlamaGenerator::LlamaGenerator(const LlamaModel& model, const Options& options, MemoryPlan& plan)
    : model_(&model), options_(options) {
  check(options.capacity >= 1, "LlamaGenerator", "capacity", "1 or more",
        fmt::format("{}", options.capacity));
  check(options.chunk >= 1, "LlamaGenerator", "chunk", "1 or more",
        fmt::format("{}", options.chunk));
  options_.chunk = std::min(options.chunk, options.capacity);
  const ModelConfig& config = model.config();
  activations_ = LlamaActivations(config, model.adapters(),
                                  {.loss = false,
                                   .max_tokens = options_.chunk,
                                   .max_length = options_.chunk,
                                   .max_sequences = 1,
                                   .cached_tokens = options_.capacity},
                                  plan);
  cache_id_ = plan.add("key_value_cache", MemoryKind::activations, DType::f32,
                       {config.layers, 2, options_.capacity, config.kv_heads * config.head_dim});
  tokens_id_ = plan.add("generator.tokens", MemoryKind::data, DType::i32, {options_.chunk});
  positions_id_ = plan.add("generator.positions", MemoryKind::data, DType::i32, {options_.chunk});
  logits_id_ = plan.add("generator.logits", MemoryKind::data, DType::f32, {config.vocabulary_size});
}

void LlamaGenerator::bind(const Arena& arena) {
  arena_ = &arena;
  activations_.bind(arena);
}

void LlamaGenerator::truncate(int64_t length) {
  check(length >= 0 && length <= length_, "LlamaGenerator::truncate", "length",
        fmt::format("0 to {}", length_), fmt::format("{}", length));
  length_ = length;
}

ConstTensorView LlamaGenerator::append(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  check(count >= 1 && count <= options_.capacity - length_, "LlamaGenerator::append", "tokens",
        fmt::format("1 to {} tokens (capacity {}, {} used)", options_.capacity - length_,
                    options_.capacity, length_),
        fmt::format("{}", count));
  const int64_t vocabulary = model_->config().vocabulary_size;
  for (int64_t t = 0; t < count; ++t) {
    const int32_t token = tokens[static_cast<size_t>(t)];
    check(token >= 0 && token < vocabulary, "LlamaGenerator::append", "tokens",
          fmt::format("ids in 0 to {}", vocabulary - 1), fmt::format("{} at {}", token, t));
  }
  TensorView hidden;
  for (int64_t first = 0; first < count; first += options_.chunk) {
    const int64_t size = std::min(options_.chunk, count - first);
    hidden = append_chunk(tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(size)));
  }
  const TensorView logits = (*arena_)[logits_id_];
  gemv(logits, model_->weights().values().head, hidden.select(0, 0));
  return logits;
}

TensorView LlamaGenerator::append_chunk(std::span<const int32_t> tokens) {
  const ModelConfig& config = model_->config();
  const LlamaTensors& weights = model_->weights().values();
  const auto count = static_cast<int64_t>(tokens.size());
  const TensorView ids = (*arena_)[tokens_id_].slice(0, 0, count);
  const TensorView positions = (*arena_)[positions_id_].slice(0, 0, count);
  std::copy(tokens.begin(), tokens.end(), ids.as<int32_t>());
  std::iota(positions.as<int32_t>(), positions.as<int32_t>() + count,
            static_cast<int32_t>(length_));

  const LlamaWorkspace workspace = activations_.workspace(count);
  const LlamaLayerActivations activations = activations_.layer(0, count, /*save=*/false);
  embedding_forward(activations.input, weights.embedding, ids);
  ConstTensorView residual;
  for (int64_t n = 0; n < config.layers; ++n) {
    const TensorView cache = (*arena_)[cache_id_].select(0, n);
    LlamaSequences sequences;
    sequences.positions = positions;
    sequences.cached_k = cache.select(0, 0);
    sequences.cached_v = cache.select(0, 1);
    sequences.cached_tokens = length_;
    llama_layer_forward(activations, workspace, model_->layer(n), sequences, residual);
    residual = activations.middle;
  }
  length_ += count;
  // Only the last row's logits are asked for, so only that row is normalised.
  const auto last = [&](auto rows) { return rows.slice(0, count - 1, 1); };
  rms_norm_forward(last(workspace.normed), last(workspace.final_rms), last(workspace.final_input),
                   last(workspace.branch), last(residual), weights.final_norm,
                   {.epsilon = config.rms_norm_epsilon});
  return last(workspace.normed);
}

}  // namespace flashloom
