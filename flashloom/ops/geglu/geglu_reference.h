#pragma once

#include "flashloom/ops/geglu/geglu.h"

namespace flashloom {

/// The contracts of geglu.h in float64 plain loops, for every floating-point dtype, f64 included.
/// The oracle of the tests.
void geglu_forward_reference(TensorView out, ConstTensorView gate, ConstTensorView up,
                             const GegluOptions& options = {}, Stream stream = {});

void geglu_backward_reference(TensorView dgate, TensorView dup, TensorView out,
                              ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                              const GegluOptions& options = {}, Stream stream = {});

}  // namespace flashloom
