#pragma once

#include "flashloom/ops/rope/rope.h"

namespace flashloom::detail {

// The contracts of rope.h for checked arguments in CPU memory.
void rope_forward_cpu(const TensorView& q, const TensorView& k, const TensorView& v,
                      const ConstTensorView& positions, const ConstTensorView& frequencies,
                      const RopeBias& bias);
void rope_backward_cpu(const TensorView& dq, const TensorView& dk, const ConstTensorView& dv,
                       const ConstTensorView& positions, const ConstTensorView& frequencies,
                       const RopeBiasGradients& dbias);

}  // namespace flashloom::detail
