#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

struct RmsNormOptions {
  double epsilon = 1e-6;
};

/// y = x r w with r = 1 / sqrt(mean(x^2) + epsilon); with a residual, x = residual + input first,
/// rounded to its storage, so that the backward pass sees the same x.
///
/// Shapes:  out, input, residual (rows, N) or, to normalise heads, (T, H, N); weight (N);
///          inverse_rms optional (rows) or (T, H) f32, contiguous, saved for the backward pass; sum
///          as out, receives residual + input: required with a residual, absent without. Any
///          strides, the last dimension contiguous.
/// Alias:   sum may be input or residual; out may be input or residual, but not sum.
/// Dtypes:  f32 or bf16 storage (all row tensors alike, weight its own), f32 arithmetic, y rounded
///          once at the end.
/// Throws:  InvalidArgument.
/// Source:  Zhang & Sennrich 2019.
void rms_norm_forward(TensorView out, TensorView inverse_rms, TensorView sum, ConstTensorView input,
                      ConstTensorView residual, ConstTensorView weight,
                      const RmsNormOptions& options = {}, Stream stream = {});

/// m = dy o w; dx = r (m - x r^2 mean(m o x)) + dresidual; dw = sum over rows of dy o x r.
///
/// Shapes:  dinput, dout, input (rows, N) or (T, H, N), dresidual alike, optional: the gradient
/// that
///          reaches the sum on its other way. dweight optional (N) f32, contiguous, added to what
///          is there, in a fixed order of rows. `input` is what was normalised (the sum).
/// Alias:   dinput may be dresidual or dout.
/// Throws:  InvalidArgument, also for a workspace that is too small (none without dweight).
void rms_norm_backward(TensorView dinput, TensorView dweight, ConstTensorView dout,
                       ConstTensorView dresidual, ConstTensorView input,
                       ConstTensorView inverse_rms, ConstTensorView weight,
                       std::span<std::byte> workspace, Stream stream = {});

/// Bytes of workspace for the backward pass with a dweight; `rows` counts all heads.
int64_t rms_norm_backward_workspace_bytes(int64_t rows, int64_t columns);

}  // namespace flashloom
