#pragma once

#include "flashloom/core/tensor_view.h"

namespace flashloom::detail {

// The contract of sum_of_squares for a checked argument in CPU memory.
double sum_of_squares_cpu(const ConstTensorView& gradient);

}  // namespace flashloom::detail
