#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// out[t] = table[tokens[t]].
///
/// Shapes:  out (T, C), table (V, C), rows at any stride, the last dimension contiguous; tokens (T)
///          i32, contiguous.
/// Dtypes:  out and table f32 or bf16, each its own; rounded to nearest even.
/// Throws:  InvalidArgument, also for a token outside [0, V), naming its place; then nothing is
///          written.
void embedding_forward(TensorView out, ConstTensorView table, ConstTensorView tokens,
                       Stream stream = {});

/// dtable[tokens[t]] += dout[t], tokens of equal id in ascending t: deterministic for any number of
/// threads.
///
/// Shapes:  dtable (V, C) f32, dout (T, C) f32 or bf16, tokens (T) i32, as above.
/// Throws:  as above.
void embedding_backward(TensorView dtable, ConstTensorView dout, ConstTensorView tokens,
                        Stream stream = {});

}  // namespace flashloom
