#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// Sum of squares of a tensor, in float64, over fixed tiles in a fixed order: the same bits for any
/// number of threads. NaN and infinity pass through.
/// Shapes:  contiguous, f32 or bf16.
/// Throws:  InvalidArgument.
double sum_of_squares(ConstTensorView gradient, Stream stream = {});

/// Factor that brings a norm down to `limit`: min(1, limit / (norm + 1e-6)) as PyTorch's
/// clip_grad_norm_; 1 if limit is 0 (no clipping), NaN for a norm of NaN.
float clip_factor(double norm, double limit);

}  // namespace flashloom
