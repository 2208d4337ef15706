#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

struct LayerNormOptions {
  double epsilon = 1e-5;
};

/// y = (x - m) r w + b with m = mean(x), r = 1 / sqrt(mean((x - m)^2) + epsilon); with a residual,
/// x = residual + input first, rounded to its storage, so that the backward pass sees the same x.
///
/// Shapes:  out, input, residual (rows, N), rows at any stride, the last dimension contiguous;
///          weight (N), bias optional (N), both contiguous; mean and inverse_deviation (r) optional
///          (rows) f32, contiguous, saved for the backward pass; sum as out, receives residual +
///          input: required with a residual, absent without.
/// Alias:   sum may be input or residual; out may be input or residual, but not sum.
/// Dtypes:  f32 or bf16 storage (all row tensors alike; weight and bias alike), f32 arithmetic, y
///          rounded once at the end.
/// Throws:  InvalidArgument.
/// Source:  Ba, Kiros & Hinton 2016.
void layer_norm_forward(TensorView out, TensorView mean, TensorView inverse_deviation,
                        TensorView sum, ConstTensorView input, ConstTensorView residual,
                        ConstTensorView weight, ConstTensorView bias,
                        const LayerNormOptions& options = {}, Stream stream = {});

/// With n = (x - m) r and g = dy o w: dx = r (g - mean(g) - n mean(g o n)) + dresidual; dw = sum
/// over rows of dy o n; db = sum over rows of dy.
///
/// Shapes:  dinput, dout, input (rows, N), dresidual alike, optional: the gradient that reaches the
///          sum on its other way. dweight and dbias optional (N) f32, contiguous, added to what is
///          there, in a fixed order of rows. `input` is what was normalised (the sum).
/// Alias:   dinput may be dresidual or dout.
/// Throws:  InvalidArgument, also for a workspace that is too small (none without dweight and
///          dbias).
void layer_norm_backward(TensorView dinput, TensorView dweight, TensorView dbias,
                         ConstTensorView dout, ConstTensorView dresidual, ConstTensorView input,
                         ConstTensorView mean, ConstTensorView inverse_deviation,
                         ConstTensorView weight, std::span<std::byte> workspace,
                         Stream stream = {});

/// Bytes of workspace for a backward pass with a dweight or a dbias.
int64_t layer_norm_backward_workspace_bytes(int64_t rows, int64_t columns);

}  // namespace flashloom
