#pragma once

#include <cstdint>
#include <string_view>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// How a bf16 parameter takes the f32 result of an update.
enum class AdamwRounding : uint8_t {
  nearest,     // to nearest even: an update below half an ulp is lost
  stochastic,  // core/stochastic_rounding.h: right in the mean
};

/// float64, as PyTorch keeps them: 1 - beta is formed before it is rounded to f32.
struct AdamwOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;    // decoupled
  double gradient_scale = 1;  // multiplies the gradient: clipping and loss normalisation
  int64_t step = 1;           // from 1: bias correction
  AdamwRounding rounding = AdamwRounding::nearest;
  uint64_t seed = 0;     // of stochastic rounding
  int64_t position = 0;  // number of the tensor's first element among all that are trained
};

/// m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr (m^ / (sqrt(v^) + eps) + wd p), with
/// g = gradient_scale x gradient and m^, v^ bias-corrected. The order and rounding of operations
/// are PyTorch's (torch.optim.AdamW, foreach = false, CPU with fused multiply-add), in f32.
///
/// Shapes:  all alike, contiguous, memory of each its own.
/// Dtypes:  f32; the parameter may be bf16, rounded once a step as the options say.
/// Order:   the same bits for any number of threads.
/// Throws:  InvalidArgument, also for a gradient_scale that is not finite.
/// Source:  Loshchilov & Hutter 2019.
void adamw(TensorView parameter, TensorView m, TensorView v, ConstTensorView gradient,
           const AdamwOptions& options, Stream stream = {});

/// Throws InvalidArgument of `op` for options that make no sense.
void check_adamw_options(std::string_view op, const AdamwOptions& options);

}  // namespace flashloom
