#include "flashloom/models/llama/llama_rope.h"

#include "flashloom/ops/rope/rope.h"

namespace flashloom {
namespace {

RopeFrequencies::Scaling op_scaling(ModelConfig::RopeScaling scaling) {
  switch (scaling) {
    case ModelConfig::RopeScaling::linear:
      return RopeFrequencies::Scaling::linear;
    case ModelConfig::RopeScaling::llama3:
      return RopeFrequencies::Scaling::llama3;
    case ModelConfig::RopeScaling::none:
    case ModelConfig::RopeScaling::factors:
      break;
  }
  return RopeFrequencies::Scaling::none;
}

}  // namespace

LlamaRope::LlamaRope(const ModelConfig& config, MemoryPlan& plan)
    : id_(plan.add("rope_frequencies", MemoryKind::weights, DType::f32, {config.head_dim / 2})) {}

void LlamaRope::bind(const Arena& arena, const ModelConfig& config) {
  frequencies_ = arena[id_];
  rope_frequencies(frequencies_,
                   {.base = config.rope_theta,
                    .scaling = op_scaling(config.rope_scaling),
                    .factor = config.rope_factor,
                    .low_frequency_factor = config.rope_low_frequency_factor,
                    .high_frequency_factor = config.rope_high_frequency_factor,
                    .original_positions = static_cast<double>(config.rope_original_positions)});
  if (config.rope_scaling == ModelConfig::RopeScaling::factors) {
    float* frequency = frequencies_.as<float>();
    for (size_t i = 0; i < config.rope_factors.size(); ++i) {
      frequency[i] /= config.rope_factors[i];
    }
  }
}

}  // namespace flashloom
