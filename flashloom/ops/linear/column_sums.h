#pragma once

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// dbias (N) += column sums of dy (T, N); rows are added in order, by one thread a column.
void add_column_sums_cpu(TensorView dbias, ConstTensorView dy);

}  // namespace flashloom
