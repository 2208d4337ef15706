#pragma once

#include "flashloom/ops/swiglu/swiglu.h"

namespace flashloom {

/// The contracts of swiglu.h in float64 plain loops, for every floating-point dtype, f64 included.
/// The oracle of the tests.
void swiglu_forward_reference(TensorView out, ConstTensorView gate, ConstTensorView up,
                              Stream stream = {});

void swiglu_backward_reference(TensorView dgate, TensorView dup, TensorView out,
                               ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                               Stream stream = {});

}  // namespace flashloom
