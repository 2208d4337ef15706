#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// out[t] = table[tokens[t]].
///
/// Shapes:  out (T, C), table (V, C) f32 or bf16, tokens (T) i32.
/// Throws:  InvalidArgument for a token outside [0, V), naming its place.
void embedding_forward(TensorView out, ConstTensorView table, ConstTensorView tokens,
                       Stream stream = {});

/// dtable[tokens[t]] += dout[t], tokens of equal id in ascending t: deterministic for any number of
/// threads. dtable f32.
void embedding_backward(TensorView dtable, ConstTensorView dout, ConstTensorView tokens,
                        Stream stream = {});

}  // namespace flashloom
