#pragma once

#include <cstdint>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// Frequencies of rotary position embedding.
struct RopeFrequencies {
  enum class Scaling : uint8_t { none, linear, llama3 };

  double base = 10000;
  Scaling scaling = Scaling::none;
  double factor = 1;                 // linear, llama3
  double low_frequency_factor = 1;   // llama3
  double high_frequency_factor = 4;  // llama3
  double original_positions = 8192;  // llama3
};

/// Angles a position step, in radians: frequencies (D / 2) f32 = base^(-2 i / D), scaled. Each step
/// is rounded to f32 as transformers does, so that long positions turn by the same angle.
/// Throws: InvalidArgument.
void rope_frequencies(TensorView frequencies, const RopeFrequencies& options);

struct RopeBias {
  ConstTensorView q, k, v;
};

/// Rotates the query and key heads of each token in place, after adding the bias of the projection:
/// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of a head ("rotate half"),
/// angle = position x frequency, in f32.
///
/// Shapes:  q (T, H, D), k optional (T, G, D), v optional (T, G, D), gets its bias only; any
/// strides,
///          the last dimension contiguous, memory of each its own; D even; positions (T) i32;
///          frequencies (D / 2) f32; biases optional (H D), (G D), (G D), added before the
///          rotation.
/// Dtypes:  q, k, v alike f32 or bf16, biases f32 or bf16; f32 arithmetic, rounded once.
/// Throws:  InvalidArgument.
/// Source:  Su et al. 2021; the layout of Hugging Face's Llama.
void rope_forward(TensorView q, TensorView k, TensorView v, ConstTensorView positions,
                  ConstTensorView frequencies, const RopeBias& bias = {}, Stream stream = {});

struct RopeBiasGradients {
  TensorView q, k, v;
};

/// In place: rotates dq and dk back. Adds the column sums of what dq, dk and dv then hold to the
/// gradients of the biases (f32, optional), in a fixed order of rows. Shapes as above.
void rope_backward(TensorView dq, TensorView dk, ConstTensorView dv, ConstTensorView positions,
                   ConstTensorView frequencies, const RopeBiasGradients& dbias = {},
                   Stream stream = {});

}  // namespace flashloom
