#include <fmt/format.h>

#include "flashloom/core/error.h"
#include "flashloom/io/model_config.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

using RopeScaling = ModelConfig::RopeScaling;

std::string_view torch_name(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    default:
      return "float32";
  }
}

std::string_view class_name(const ModelConfig& config) {
  if (config.architecture == "llama") {
    return "LlamaForCausalLM";
  }
  if (config.architecture == "qwen2") {
    return "Qwen2ForCausalLM";
  }
  if (config.architecture == "qwen3") {
    return "Qwen3ForCausalLM";
  }
  throw Unsupported("to_hugging_face_json", "architecture " + config.architecture);
}

// transformers 4 and 5 name the kind alike; where the object stands differs.
Json rope_json(const ModelConfig& config) {
  switch (config.rope_scaling) {
    case RopeScaling::none:
      return {{"rope_type", "default"}};
    case RopeScaling::linear:
      return {{"rope_type", "linear"}, {"factor", config.rope_factor}};
    case RopeScaling::llama3:
      return {{"rope_type", "llama3"},
              {"factor", config.rope_factor},
              {"low_freq_factor", config.rope_low_frequency_factor},
              {"high_freq_factor", config.rope_high_frequency_factor},
              {"original_max_position_embeddings", config.rope_original_positions}};
    case RopeScaling::factors:
      break;
  }
  throw Unsupported("to_hugging_face_json",
                    "rotary frequency factors of a GGUF file that are not llama3's");
}

void add_biases(Json& root, const ModelConfig& config) {
  if (config.qk_norm != (config.architecture == "qwen3")) {
    throw Unsupported("to_hugging_face_json", "QK norm belongs to Qwen3, and only there");
  }
  const bool both = config.attention_bias == config.attention_output_bias;
  if (config.architecture == "qwen2") {
    if (!config.attention_bias || config.attention_output_bias || config.mlp_bias) {
      throw Unsupported("to_hugging_face_json", "a Qwen2 has biases on q, k and v and only there");
    }
    return;
  }
  if (!both) {
    throw Unsupported("to_hugging_face_json",
                      "attention biases on some of q, k, v, o only (" + config.architecture + ")");
  }
  root["attention_bias"] = config.attention_bias;
  if (config.architecture == "llama") {
    root["mlp_bias"] = config.mlp_bias;
  } else if (config.mlp_bias) {
    throw Unsupported("to_hugging_face_json", "biases in the MLP of a Qwen3");
  }
}

void add_token_ids(Json& root, const ModelConfig& config) {
  root["bos_token_id"] = config.bos_token_id ? Json(*config.bos_token_id) : Json();
  if (config.eos_token_ids.empty()) {
    root["eos_token_id"] = nullptr;
  } else if (config.eos_token_ids.size() == 1) {
    root["eos_token_id"] = config.eos_token_ids.front();
  } else {
    root["eos_token_id"] = config.eos_token_ids;
  }
  root["pad_token_id"] = config.pad_token_id ? Json(*config.pad_token_id) : Json();
}

}  // namespace

std::string to_hugging_face_json(const ModelConfig& config) {
  Json root;
  root["architectures"] = Json::array({class_name(config)});
  root["model_type"] = config.architecture;
  root["vocab_size"] = config.vocabulary_size;
  root["hidden_size"] = config.hidden_size;
  root["intermediate_size"] = config.intermediate_size;
  root["num_hidden_layers"] = config.layers;
  root["num_attention_heads"] = config.heads;
  root["num_key_value_heads"] = config.kv_heads;
  root["head_dim"] = config.head_dim;
  root["max_position_embeddings"] = config.max_positions;
  root["hidden_act"] = "silu";
  root["rms_norm_eps"] = config.rms_norm_epsilon;
  add_biases(root, config);
  root["tie_word_embeddings"] = config.tied_embeddings;
  if (config.architecture != "llama") {
    root["use_sliding_window"] = false;
  }

  Json rope = rope_json(config);
  root["rope_theta"] = config.rope_theta;
  root["rope_scaling"] =
      config.rope_scaling == RopeScaling::none ? Json() : rope;  // transformers 4
  rope["rope_theta"] = config.rope_theta;
  root["rope_parameters"] = rope;  // transformers 5

  add_token_ids(root, config);
  root["torch_dtype"] = torch_name(config.stored_dtype);  // transformers 4
  root["dtype"] = torch_name(config.stored_dtype);        // transformers 5
  root["use_cache"] = true;
  return root.dump(2) + "\n";
}

std::string to_generation_config_json(const ModelConfig& config) {
  Json root;
  add_token_ids(root, config);
  return root.dump(2) + "\n";
}

}  // namespace flashloom
