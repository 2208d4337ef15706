#pragma once

#include "flashloom/ops/layer_norm/layer_norm.h"

namespace flashloom {

/// The contracts of layer_norm.h in float64 plain loops, for every floating-point dtype, f64
/// included. The oracle of the tests. Workspace is not used.
void layer_norm_forward_reference(TensorView out, TensorView mean, TensorView inverse_deviation,
                                  TensorView sum, ConstTensorView input, ConstTensorView residual,
                                  ConstTensorView weight, ConstTensorView bias,
                                  const LayerNormOptions& options = {}, Stream stream = {});

void layer_norm_backward_reference(TensorView dinput, TensorView dweight, TensorView dbias,
                                   ConstTensorView dout, ConstTensorView dresidual,
                                   ConstTensorView input, ConstTensorView mean,
                                   ConstTensorView inverse_deviation, ConstTensorView weight,
                                   std::span<std::byte> workspace = {}, Stream stream = {});

}  // namespace flashloom
