#pragma once

#include <cstdint>
#include <string>

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// What a parameter is to an optimizer: vectors (norm weights, biases, DoRA's magnitudes) and
/// embeddings (a tied head too) take no weight decay, LoRA+ gives `adapter_b` a learning rate of
/// its own.
enum class ParameterRole : uint8_t {
  matrix,
  vector,
  embedding,
  adapter_a,
  adapter_b,
  adapter_magnitude
};

constexpr bool is_adapter(ParameterRole role) {
  return role == ParameterRole::adapter_a || role == ParameterRole::adapter_b ||
         role == ParameterRole::adapter_magnitude;
}

constexpr bool takes_weight_decay(ParameterRole role) {
  return role != ParameterRole::vector && role != ParameterRole::embedding &&
         role != ParameterRole::adapter_magnitude;
}

/// One named tensor of a model, for optimizers, checkpoints and export.
struct Parameter {
  std::string name;  // as in the file that it is exported to (Hugging Face, or peft for adapters)
  ParameterRole role = ParameterRole::matrix;
  TensorView value;
  TensorView gradient;  // absent: frozen

  bool trainable() const { return static_cast<bool>(gradient); }
};

}  // namespace flashloom
