#pragma once

#include "flashloom/ops/geglu/geglu.h"

namespace flashloom::detail {

// The contracts of geglu.h for checked arguments in CPU memory.
void geglu_forward_cpu(const TensorView& out, const ConstTensorView& gate,
                       const ConstTensorView& up, GeluApproximation approximation);
void geglu_backward_cpu(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                        const ConstTensorView& dout, const ConstTensorView& gate,
                        const ConstTensorView& up, GeluApproximation approximation);

}  // namespace flashloom::detail
