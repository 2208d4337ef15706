#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// out = gate sigmoid(gate) up, element by element.
///
/// Shapes:  out, gate, up (rows, N), rows at any stride, the last dimension contiguous; f32 or
/// bf16,
///          f32 arithmetic. out may alias gate or up.
/// Source:  Shazeer 2020.
void swiglu_forward(TensorView out, ConstTensorView gate, ConstTensorView up, Stream stream = {});

/// dup = dout silu(gate); dgate = dout up s (1 + gate (1 - s)), s = sigmoid(gate), recomputed.
/// dgate may alias gate and dup may alias up. With `out`, writes the forward result again (for a
/// caller that did not keep it); out may alias dout.
void swiglu_backward(TensorView dgate, TensorView dup, TensorView out, ConstTensorView dout,
                     ConstTensorView gate, ConstTensorView up, Stream stream = {});

}  // namespace flashloom
