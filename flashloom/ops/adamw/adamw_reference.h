#pragma once

#include "flashloom/ops/adamw/adamw.h"

namespace flashloom {

/// The contract of adamw.h in float64 plain loops, for every floating-point dtype, f64 included.
/// The oracle of the tests.
void adamw_reference(TensorView parameter, TensorView m, TensorView v, ConstTensorView gradient,
                     const AdamwOptions& options, Stream stream = {});

}  // namespace flashloom
