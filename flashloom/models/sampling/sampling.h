#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

struct SamplingOptions {
  double temperature = 1;  // 0: the most likely token
  double top_p = 1;        // keep the likeliest tokens that together reach this probability
  int64_t top_k = 0;       // keep at most so many; 0: all
};

/// Throws InvalidArgument for a negative temperature or top_k, or top_p outside (0, 1].
void validate(const SamplingOptions& options);

/// Draws the next token: temperature, then top-k, then top-p, as Hugging Face orders them. Among
/// equal logits the lowest id comes first.
///
/// Shapes:  logits (V) f32. `scratch` is reused between calls.
/// Throws:  InvalidArgument if no logit is finite or one is NaN.
int32_t sample_token(ConstTensorView logits, const SamplingOptions& options, RandomSequence& random,
                     std::vector<int32_t>& scratch);

}  // namespace flashloom
