#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// out = gate sigmoid(gate) up, element by element.
///
/// Shapes:  out, gate, up (rows, N), rows at any stride, the last dimension contiguous.
/// Alias:   out may be gate or up.
/// Dtypes:  f32 or bf16, all alike; f32 arithmetic, rounded once.
/// Throws:  InvalidArgument.
/// Source:  Shazeer 2020.
void swiglu_forward(TensorView out, ConstTensorView gate, ConstTensorView up, Stream stream = {});

/// dup = dout silu(gate); dgate = dout up s (1 + gate (1 - s)), s = sigmoid(gate), recomputed. With
/// `out` (optional), writes the forward result again, for a caller that did not keep it.
///
/// Shapes:  all (rows, N), as above.
/// Alias:   dgate, dup and out may each be any one of dout, gate and up, but not each other.
void swiglu_backward(TensorView dgate, TensorView dup, TensorView out, ConstTensorView dout,
                     ConstTensorView gate, ConstTensorView up, Stream stream = {});

}  // namespace flashloom
