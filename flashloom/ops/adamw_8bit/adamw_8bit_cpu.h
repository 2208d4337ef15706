#pragma once

#include "flashloom/ops/adamw_8bit/adamw_8bit.h"

namespace flashloom::detail {

// The contract of adamw_8bit.h for checked arguments in CPU memory.
void adamw_8bit_cpu(const TensorView& parameter, const QuantizedMoment& m, const QuantizedMoment& v,
                    const float* gradient, const AdamwOptions& options);

}  // namespace flashloom::detail
