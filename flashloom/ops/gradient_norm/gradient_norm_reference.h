#pragma once

#include "flashloom/ops/gradient_norm/gradient_norm.h"

namespace flashloom {

/// The contract of sum_of_squares in one plain float64 loop, for every floating-point dtype. The
/// oracle of the tests.
double sum_of_squares_reference(ConstTensorView gradient, Stream stream = {});

}  // namespace flashloom
