#pragma once

#include <string>

#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama.h"

namespace flashloom {

/// Writes `adapter_model.safetensors` (f32) and `adapter_config.json` into `directory`, as peft
/// reads them. `base_model` is where the base weights came from.
void save_adapter(const std::string& directory, const LlamaModel& model,
                  const std::string& base_model);

/// Rank, alpha and targets from an `adapter_config.json`, so that a model can be planned for them.
/// Throws IoError naming the field for anything but LoRA, rsLoRA and DoRA over linears of layers
/// (rank patterns, biases, saved modules).
LoraOptions read_adapter_options(const std::string& directory);

/// Fills the adapters of a bound model. Throws IoError naming the tensor that is missing, too much
/// or of another shape.
void load_adapter(const std::string& directory, const LlamaModel& model);

}  // namespace flashloom
