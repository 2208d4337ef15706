#pragma once

#include "flashloom/core/tensor_view.h"

namespace flashloom::detail {

// The contracts of embedding.h for checked arguments in CPU memory.
void embedding_forward_cpu(const TensorView& out, const ConstTensorView& table,
                           const ConstTensorView& tokens);
void embedding_backward_cpu(const TensorView& dtable, const ConstTensorView& dout,
                            const ConstTensorView& tokens);

}  // namespace flashloom::detail
