#pragma once

#include <cstdint>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// As PyTorch's `approximate`; transformers says "gelu" for none, "gelu_new" and
/// "gelu_pytorch_tanh" for tanh.
enum class GeluApproximation : uint8_t {
  /// g Phi(g), Phi(g) = (1 + erf(g / sqrt 2)) / 2.
  none,
  /// g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) / 2.
  tanh,
};

struct GegluOptions {
  GeluApproximation approximation = GeluApproximation::none;
};

/// out = gelu(gate) up, element by element.
///
/// Shapes:  out, gate, up (rows, N), rows at any stride, the last dimension contiguous.
/// Alias:   out may be gate or up.
/// Dtypes:  f32 or bf16, all alike; f32 arithmetic, rounded once.
/// Throws:  InvalidArgument.
/// Source:  Hendrycks & Gimpel 2016; Shazeer 2020.
void geglu_forward(TensorView out, ConstTensorView gate, ConstTensorView up,
                   const GegluOptions& options = {}, Stream stream = {});

/// dup = dout gelu(gate); dgate = dout up gelu'(gate), gelu' = Phi(g) + g e^(-g^2 / 2) / sqrt(2 pi)
/// or its counterpart of the tanh form, recomputed. With `out` (optional), writes the forward
/// result again, for a caller that did not keep it.
///
/// Shapes:  all (rows, N), as above.
/// Alias:   dgate, dup and out may each be any one of dout, gate and up, but not each other.
void geglu_backward(TensorView dgate, TensorView dup, TensorView out, ConstTensorView dout,
                    ConstTensorView gate, ConstTensorView up, const GegluOptions& options = {},
                    Stream stream = {});

}  // namespace flashloom
