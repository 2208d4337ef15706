#pragma once

#include "flashloom/ops/rope/rope.h"

namespace flashloom {

/// The contracts of rope.h in float64 plain loops, for every floating-point dtype, f64 included;
/// only the angle is rounded to f32, as the contract says. The oracle of the tests.
void rope_forward_reference(TensorView q, TensorView k, TensorView v, ConstTensorView positions,
                            ConstTensorView frequencies, const RopeBias& bias = {},
                            Stream stream = {});

void rope_backward_reference(TensorView dq, TensorView dk, ConstTensorView dv,
                             ConstTensorView positions, ConstTensorView frequencies,
                             const RopeBiasGradients& dbias = {}, Stream stream = {});

}  // namespace flashloom
