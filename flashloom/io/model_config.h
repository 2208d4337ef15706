#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/dtype.h"

namespace flashloom {

/// A decoder of the Llama family, as plain facts: what a model's code needs to know, wherever the
/// weights came from. Every number of a parsed config has been checked (validate()).
struct ModelConfig {
  /// How rotary frequencies differ from theta^(-2i/head_dim).
  enum class RopeScaling : uint8_t {
    none,
    linear,   // all divided by rope_factor
    llama3,   // by wavelength, from rope_factor, the two frequency factors and original positions
    factors,  // pair i divided by rope_factors[i] (GGUF's rope_freqs.weight, when not llama3's)
  };

  std::string architecture;  // "llama" (Mistral too), "qwen2", "qwen3"

  int64_t vocabulary_size = 0;  // rows of the embedding; may exceed the tokenizer's
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // need not be hidden_size / heads
  int64_t max_positions = 0;

  double rms_norm_epsilon = 0;

  double rope_theta = 0;
  RopeScaling rope_scaling = RopeScaling::none;
  double rope_factor = 1;
  double rope_low_frequency_factor = 1;
  double rope_high_frequency_factor = 1;
  int64_t rope_original_positions = 0;
  std::vector<float> rope_factors;  // (head_dim / 2), only for RopeScaling::factors

  bool attention_bias = false;         // q_proj, k_proj, v_proj
  bool attention_output_bias = false;  // o_proj
  bool mlp_bias = false;               // gate_proj, up_proj, down_proj
  bool qk_norm = false;                // RMSNorm of each head of q and k (q_norm, k_norm)
  bool tied_embeddings = false;        // lm_head is embed_tokens

  /// Every token that ends a generation; generation_config.json's first, then config.json's.
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> pad_token_id;

  DType stored_dtype = DType::f32;  // what an export writes unless told otherwise

  bool operator==(const ModelConfig&) const = default;
};

std::string_view rope_scaling_name(ModelConfig::RopeScaling scaling);

/// Parses Hugging Face's config.json, as transformers 4 (`rope_theta`, `rope_scaling`,
/// `torch_dtype`) or 5 (`rope_parameters`, `dtype`) writes it, of LlamaForCausalLM,
/// Qwen2ForCausalLM, Qwen3ForCausalLM, and MistralForCausalLM without a sliding window. `file`
/// names the source in errors. Throws IoError.
ModelConfig parse_hugging_face_config(std::string_view json, std::string_view file);

/// Takes the end, begin and padding tokens of generation_config.json over those of the config.
void apply_generation_config(ModelConfig& config, std::string_view json, std::string_view file);

/// Throws IoError naming `file` and the field unless every number is sane: sizes positive and
/// within limits that keep all products far from overflow, heads a multiple of kv_heads, head_dim
/// even, token ids inside the vocabulary.
void validate(const ModelConfig& config, std::string_view file);

/// The config.json that transformers 4 and 5 load to the same model. Throws Unsupported for what
/// they have no field for (RopeScaling::factors; biases on some of a Llama's projections only).
std::string to_hugging_face_json(const ModelConfig& config);

/// The generation_config.json that goes with it: the token ids alone.
std::string to_generation_config_json(const ModelConfig& config);

/// Parameters of the model: embeddings, layers, norms, and the head unless tied.
int64_t parameter_count(const ModelConfig& config);

}  // namespace flashloom
