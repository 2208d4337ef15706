#include "flashloom/io/model_config.h"

#include <fmt/format.h>

#include <cmath>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

// Far above every published model, and low enough that any product of three stays below 2^63.
constexpr int64_t kMaxVocabulary = int64_t{1} << 22;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 1 << 12;
constexpr int64_t kMaxHeads = 1 << 12;
constexpr int64_t kMaxHeadDim = 1 << 12;
constexpr int64_t kMaxPositions = int64_t{1} << 31;

void require(bool ok, std::string_view file, std::string_view field, std::string_view expected,
             std::string_view actual) {
  if (!ok) {
    throw IoError(file, field, fmt::format("expected {}, got {}", expected, actual));
  }
}

void require_size(std::string_view file, std::string_view field, int64_t value, int64_t limit) {
  require(value >= 1 && value <= limit, file, field, fmt::format("1 to {}", limit),
          fmt::format("{}", value));
}

void require_number(std::string_view file, std::string_view field, double value, double low,
                    double high) {
  require(std::isfinite(value) && value > low && value <= high, file, field,
          fmt::format("more than {} and at most {}", low, high), fmt::format("{}", value));
}

void require_token(std::string_view file, std::string_view field, int64_t id, int64_t vocabulary) {
  require(id >= 0 && id < vocabulary, file, field,
          fmt::format("a token id below the vocabulary size {}", vocabulary),
          fmt::format("{}", id));
}

void validate_rope(const ModelConfig& config, std::string_view file) {
  require_number(file, "rope_theta", config.rope_theta, 0, 1e15);
  switch (config.rope_scaling) {
    case ModelConfig::RopeScaling::none:
      break;
    case ModelConfig::RopeScaling::linear:
      require_number(file, "rope factor", config.rope_factor, 0, 1e6);
      break;
    case ModelConfig::RopeScaling::llama3:
      require_number(file, "rope factor", config.rope_factor, 0, 1e6);
      require_number(file, "low_freq_factor", config.rope_low_frequency_factor, 0, 1e6);
      require_number(file, "high_freq_factor", config.rope_high_frequency_factor,
                     config.rope_low_frequency_factor, 1e6);
      require_size(file, "original_max_position_embeddings", config.rope_original_positions,
                   kMaxPositions);
      break;
    case ModelConfig::RopeScaling::factors:
      require(static_cast<int64_t>(config.rope_factors.size()) == config.head_dim / 2, file,
              "rope factors", fmt::format("{} numbers", config.head_dim / 2),
              fmt::format("{}", config.rope_factors.size()));
      for (const float factor : config.rope_factors) {
        require_number(file, "rope factors", factor, 0, 1e6);
      }
      break;
  }
}

}  // namespace

std::string_view rope_scaling_name(ModelConfig::RopeScaling scaling) {
  constexpr std::string_view kNames[] = {"none", "linear", "llama3", "factors"};
  return kNames[static_cast<size_t>(scaling)];
}

void validate(const ModelConfig& config, std::string_view file) {
  require_size(file, "vocab_size", config.vocabulary_size, kMaxVocabulary);
  require_size(file, "hidden_size", config.hidden_size, kMaxWidth);
  require_size(file, "intermediate_size", config.intermediate_size, kMaxWidth);
  require_size(file, "num_hidden_layers", config.layers, kMaxLayers);
  require_size(file, "num_attention_heads", config.heads, kMaxHeads);
  require_size(file, "num_key_value_heads", config.kv_heads, config.heads);
  require(config.heads % config.kv_heads == 0, file, "num_key_value_heads",
          fmt::format("a divisor of the {} attention heads", config.heads),
          fmt::format("{}", config.kv_heads));
  require_size(file, "head_dim", config.head_dim, kMaxHeadDim);
  require(config.head_dim % 2 == 0, file, "head_dim", "an even number (rotary pairs)",
          fmt::format("{}", config.head_dim));
  require_size(file, "max_position_embeddings", config.max_positions, kMaxPositions);
  require_number(file, "rms_norm_eps", config.rms_norm_epsilon, 0, 1);
  validate_rope(config, file);
  for (const int32_t id : config.eos_token_ids) {
    require_token(file, "eos_token_id", id, config.vocabulary_size);
  }
  if (config.bos_token_id) {
    require_token(file, "bos_token_id", *config.bos_token_id, config.vocabulary_size);
  }
  if (config.pad_token_id) {
    require_token(file, "pad_token_id", *config.pad_token_id, config.vocabulary_size);
  }
}

int64_t parameter_count(const ModelConfig& config) {
  const int64_t query = config.heads * config.head_dim;
  const int64_t key = config.kv_heads * config.head_dim;
  int64_t layer = config.hidden_size * (2 * query + 2 * key) +  // q, o, k, v
                  3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size;
  layer += config.attention_bias ? query + 2 * key : 0;
  layer += config.attention_output_bias ? config.hidden_size : 0;
  layer += config.mlp_bias ? 2 * config.intermediate_size + config.hidden_size : 0;
  layer += config.qk_norm ? 2 * config.head_dim : 0;
  const int64_t embedding = config.vocabulary_size * config.hidden_size;
  return config.layers * layer + config.hidden_size +
         (config.tied_embeddings ? embedding : 2 * embedding);
}

}  // namespace flashloom
