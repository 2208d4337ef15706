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

/// y = x r w with r = 1 / sqrt(mean(x^2) + epsilon); with a residual, x = residual + input first.
///
/// Shapes:  out, input, residual (rows, N); weight (N); inverse_rms (rows) f32, saved for the
///          backward pass; sum (rows, N) receives residual + input, and is required with a
///          residual. input may alias sum. Rows at any stride, the last dimension contiguous.
/// Dtypes:  f32 or bf16 storage (all row tensors alike), f32 arithmetic, rounded once at the end.
/// Throws:  InvalidArgument.
/// Source:  Zhang & Sennrich 2019.
void rms_norm_forward(TensorView out, TensorView inverse_rms, TensorView sum, ConstTensorView input,
                      ConstTensorView residual, ConstTensorView weight,
                      const RmsNormOptions& options = {}, Stream stream = {});

/// m = dy o w; dx = r (m - x r^2 mean(m o x)) + dresidual; dw = sum over rows of dy o x r.
///
/// Shapes:  dinput, dout, input (rows, N), dresidual optional (rows, N): the gradient that reaches
///          the sum on its other way; dinput may alias dresidual. dweight optional (N) f32, added
///          to what is there, in a fixed order of rows. `input` is what was normalised (the sum).
void rms_norm_backward(TensorView dinput, TensorView dweight, ConstTensorView dout,
                       ConstTensorView dresidual, ConstTensorView input,
                       ConstTensorView inverse_rms, ConstTensorView weight,
                       std::span<std::byte> workspace, Stream stream = {});

/// Bytes of workspace for the backward pass with a dweight.
int64_t rms_norm_backward_workspace_bytes(int64_t rows, int64_t columns);

}  // namespace flashloom
