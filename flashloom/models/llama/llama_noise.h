#pragma once

#include <cstdint>

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// NEFTune (Jain et al. 2023): noise on the embeddings of a training step.
struct EmbeddingNoise {
  double alpha = 0;         // 0: none
  uint64_t seed = 0;        // of the run
  int64_t step = 0;         // optimizer step
  int64_t first_token = 0;  // tokens of the step in micro-batches before this one
};

/// stream += U(-1, 1) alpha / sqrt(L C), L the length of the token's own document, as transformers
/// does for a batch of one document. The numbers depend on (seed; step, token of the step, channel)
/// alone, neither on micro-batches nor on threads.
///
/// Shapes:  stream (T, C) f32; cu_seqlens (documents + 1) i32, the last T.
/// Throws:  InvalidArgument for an alpha that is negative or not finite.
void add_embedding_noise(TensorView stream, ConstTensorView cu_seqlens,
                         const EmbeddingNoise& noise);

}  // namespace flashloom
