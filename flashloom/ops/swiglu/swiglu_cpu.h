#pragma once

#include "flashloom/core/tensor_view.h"

namespace flashloom::detail {

// The contracts of swiglu.h for checked arguments in CPU memory.
void swiglu_forward_cpu(const TensorView& out, const ConstTensorView& gate,
                        const ConstTensorView& up);
void swiglu_backward_cpu(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                         const ConstTensorView& dout, const ConstTensorView& gate,
                         const ConstTensorView& up);

}  // namespace flashloom::detail
