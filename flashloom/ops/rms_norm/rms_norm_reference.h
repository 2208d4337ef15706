#pragma once

#include "flashloom/ops/rms_norm/rms_norm.h"

namespace flashloom {

/// The contracts of rms_norm.h in float64 plain loops, for rows (rows, N) or (T, H, N) and every
/// floating-point dtype, f64 included. The oracle of the tests. Workspace is not used.
void rms_norm_forward_reference(TensorView out, TensorView inverse_rms, TensorView sum,
                                ConstTensorView input, ConstTensorView residual,
                                ConstTensorView weight, const RmsNormOptions& options = {},
                                Stream stream = {});

void rms_norm_backward_reference(TensorView dinput, TensorView dweight, ConstTensorView dout,
                                 ConstTensorView dresidual, ConstTensorView input,
                                 ConstTensorView inverse_rms, ConstTensorView weight,
                                 std::span<std::byte> workspace = {}, Stream stream = {});

}  // namespace flashloom
