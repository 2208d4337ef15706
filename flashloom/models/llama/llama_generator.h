#pragma once

#include <cstdint>
#include <span>

#include "flashloom/core/memory_plan.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/models/llama/llama.h"

namespace flashloom {

/// Decoding with a cache of keys and values: a context that grows by appending tokens.
class LlamaGenerator {
 public:
  struct Options {
    int64_t capacity = 0;  // longest context, prompt and answer together
    int64_t chunk = 256;   // tokens of a prompt worked on at once
  };

  /// Plans the cache and the activations of a chunk. The model must outlive the generator; its own
  /// activations are not used, so it may be planned for training or for nothing.
  LlamaGenerator(const LlamaModel& model, const Options& options, MemoryPlan& plan);

  /// The arena of that plan. It must outlive the generator and stay where it is.
  void bind(const Arena& arena);

  /// Appends tokens to the context; returns the logits (V) f32 of what follows, valid until the
  /// next call. Throws InvalidArgument for no tokens, a token outside the vocabulary, or more than
  /// the capacity holds (the context is then unchanged).
  ConstTensorView append(std::span<const int32_t> tokens);

  /// Forgets all but the first `length` tokens: 0 starts anew, more keeps a common beginning.
  void truncate(int64_t length);

  int64_t length() const { return length_; }

  int64_t capacity() const { return options_.capacity; }

 private:
  /// Returns the last row (1, C) after the final norm.
  TensorView append_chunk(std::span<const int32_t> tokens);

  const LlamaModel* model_;
  Options options_;
  LlamaActivations activations_;
  MemoryPlan::Id cache_id_;
  MemoryPlan::Id tokens_id_;
  MemoryPlan::Id positions_id_;
  MemoryPlan::Id logits_id_;
  const Arena* arena_ = nullptr;
  int64_t length_ = 0;
};

}  // namespace flashloom
