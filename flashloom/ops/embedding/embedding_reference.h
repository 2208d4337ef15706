#pragma once

#include "flashloom/ops/embedding/embedding.h"

namespace flashloom {

/// The contracts of embedding.h in float64 plain loops, for every floating-point dtype, f64
/// included. The oracle of the tests.
void embedding_forward_reference(TensorView out, ConstTensorView table, ConstTensorView tokens,
                                 Stream stream = {});

void embedding_backward_reference(TensorView dtable, ConstTensorView dout, ConstTensorView tokens,
                                  Stream stream = {});

}  // namespace flashloom
