#pragma once

#include <cstdint>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

struct AdamwOptions {
  float learning_rate = 1e-3f;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0;    // decoupled
  float gradient_scale = 1;  // multiplies the gradient: clipping and loss normalisation
  int64_t step = 1;          // from 1: bias correction
};

/// m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr (m^ / (sqrt(v^) + eps) + wd p), with
/// g = gradient_scale x gradient and m^, v^ bias-corrected. The order and rounding of operations
/// are PyTorch's (torch.optim.AdamW, foreach = false), in f32.
///
/// Shapes:  all alike, contiguous, f32.
/// Source:  Loshchilov & Hutter 2019.
void adamw(TensorView parameter, TensorView m, TensorView v, ConstTensorView gradient,
           const AdamwOptions& options, Stream stream = {});

}  // namespace flashloom
