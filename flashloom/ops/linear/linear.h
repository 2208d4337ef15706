#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// y = x W^T + bias.
///
/// Shapes:  y (T, N), x (T, K), weight (N, K) as PyTorch stores it, bias optional (N).
/// Dtypes:  f32; the weight may be bf16, whose products are those of its numbers in f32. Rows at
/// any
///          stride.
/// Order:   the same bits for any number of threads.
/// Throws:  InvalidArgument.
void linear_forward(TensorView y, ConstTensorView x, ConstTensorView weight,
                    ConstTensorView bias = {}, Stream stream = {});

struct LinearBackwardOptions {
  bool accumulate_input = false;  // add to dx instead of overwriting it
};

/// dx = dy W; dW += dy^T x; dbias += column sums of dy, rows in a fixed order. Absent outputs are
/// not computed. dweight and dbias are always added to (gradient accumulation). `x` may be absent
/// if dweight is, `weight` if dx is.
void linear_backward(TensorView dx, TensorView dweight, TensorView dbias, ConstTensorView dy,
                     ConstTensorView x, ConstTensorView weight,
                     const LinearBackwardOptions& options = {}, Stream stream = {});

/// The oracles: float64 plain loops. f32 or f64 tensors.
void linear_forward_reference(TensorView y, ConstTensorView x, ConstTensorView weight,
                              ConstTensorView bias = {});
void linear_backward_reference(TensorView dx, TensorView dweight, TensorView dbias,
                               ConstTensorView dy, ConstTensorView x, ConstTensorView weight,
                               const LinearBackwardOptions& options = {});

}  // namespace flashloom
