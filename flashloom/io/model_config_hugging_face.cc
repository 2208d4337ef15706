#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/error.h"
#include "flashloom/io/model_config.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

using RopeScaling = ModelConfig::RopeScaling;

// Typed access to one JSON object; null counts as absent, as in transformers.
class Fields {
 public:
  Fields(const Json& object, std::string_view file) : object_(object), file_(file) {
    if (!object.is_object()) {
      throw IoError(file, "", fmt::format("expected a JSON object, got {}", object.type_name()));
    }
  }

  const Json* find(const char* name) const {
    const Json* value = object_.find(name);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  int64_t integer(const char* name, std::optional<int64_t> otherwise = {}) const {
    const Json* value = find(name);
    if (value == nullptr) {
      return given(name, otherwise);
    }
    if (!value->is_integer() || value->number() > 0x1p62) {
      wrong(name, "an integer", *value);
    }
    return value->integer();
  }

  double number(const char* name, std::optional<double> otherwise = {}) const {
    const Json* value = find(name);
    if (value == nullptr) {
      return given(name, otherwise);
    }
    if (!value->is_number()) {
      wrong(name, "a number", *value);
    }
    return value->number();
  }

  bool boolean(const char* name, bool otherwise) const {
    const Json* value = find(name);
    if (value == nullptr) {
      return otherwise;
    }
    if (!value->is_boolean()) {
      wrong(name, "true or false", *value);
    }
    return value->boolean();
  }

  std::string text(const char* name, const std::optional<std::string>& otherwise = {}) const {
    const Json* value = find(name);
    if (value == nullptr) {
      return given(name, otherwise);
    }
    if (!value->is_string()) {
      wrong(name, "a string", *value);
    }
    return value->string();
  }

  // A token id, a list of them, or nothing.
  std::vector<int32_t> token_ids(const char* name) const {
    const Json* value = find(name);
    if (value == nullptr) {
      return {};
    }
    const Json list = value->is_array() ? *value : Json::array({*value});
    std::vector<int32_t> ids;
    for (const Json& id : list.elements()) {
      if (!id.is_unsigned() || id.number() > INT32_MAX) {
        wrong(name, "a token id", id);
      }
      ids.push_back(static_cast<int32_t>(id.integer()));
    }
    return ids;
  }

  std::optional<int32_t> token_id(const char* name) const {
    const std::vector<int32_t> ids = token_ids(name);
    return ids.empty() ? std::nullopt : std::optional(ids.front());
  }

  [[noreturn]] void unsupported(const char* name, std::string_view supported) const {
    throw IoError(file_, name,
                  fmt::format("expected {}, got {}", supported, shortened(object_.at(name))));
  }

 private:
  // What stands for an absent field.
  template <class T>
  T given(const char* name, const std::optional<T>& otherwise) const {
    if (!otherwise) {
      throw IoError(file_, name, "missing");
    }
    return *otherwise;
  }

  [[noreturn]] void wrong(const char* name, std::string_view expected, const Json& value) const {
    throw IoError(file_, name, fmt::format("expected {}, got {}", expected, shortened(value)));
  }

  static std::string shortened(const Json& value) {
    std::string text = value.dump(-1, JsonText::ascii);
    if (text.size() > 60) {
      text.resize(57);
      text += "...";
    }
    return text;
  }

  const Json& object_;
  std::string_view file_;
};

struct Family {
  std::string_view class_name;
  std::string_view model_type;
  std::string_view architecture;
  int64_t default_positions;  // of the configuration class in transformers, for an absent field
};

constexpr Family kFamilies[] = {
    {"LlamaForCausalLM", "llama", "llama", 2048},
    {"MistralForCausalLM", "mistral", "llama", 131072},
    {"Qwen2ForCausalLM", "qwen2", "qwen2", 32768},
    {"Qwen3ForCausalLM", "qwen3", "qwen3", 32768},
};

const Family& find_family(const Fields& fields, std::string_view file) {
  std::string name;
  const Json* classes = fields.find("architectures");
  if (classes != nullptr && classes->is_array() && classes->size() > 0 &&
      classes->elements().front().is_string()) {
    name = classes->elements().front().string();
  } else {
    name = fields.text("model_type");
  }
  for (const Family& family : kFamilies) {
    if (name == family.class_name || name == family.model_type) {
      return family;
    }
  }
  throw IoError(file, "architectures",
                fmt::format("expected LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or "
                            "Qwen3ForCausalLM, got {}",
                            name));
}

// transformers 5 puts rope_theta inside rope_parameters; 4 has rope_theta and rope_scaling.
void parse_rope(ModelConfig& config, const Fields& fields, std::string_view file) {
  config.rope_theta = fields.number("rope_theta", 10000.0);
  const Json* object = fields.find("rope_parameters");
  if (object == nullptr) {
    object = fields.find("rope_scaling");
  }
  if (object == nullptr) {
    return;
  }
  const Fields rope(*object, file);
  config.rope_theta = rope.number("rope_theta", config.rope_theta);
  if (rope.number("partial_rotary_factor", 1.0) != 1.0) {
    rope.unsupported("partial_rotary_factor", "1 (all of each head rotated)");
  }
  const char* key = rope.find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = rope.text(key, "default");
  if (type == "linear") {
    config.rope_scaling = RopeScaling::linear;
    config.rope_factor = rope.number("factor");
  } else if (type == "llama3") {
    config.rope_scaling = RopeScaling::llama3;
    config.rope_factor = rope.number("factor");
    config.rope_low_frequency_factor = rope.number("low_freq_factor");
    config.rope_high_frequency_factor = rope.number("high_freq_factor");
    config.rope_original_positions = rope.integer("original_max_position_embeddings");
  } else if (type != "default") {
    rope.unsupported(key, "\"default\", \"linear\" or \"llama3\"");
  }
}

void refuse_windows(const Fields& fields, const Family& family, std::string_view file) {
  if (family.model_type == "mistral") {
    // Absent means 4096 to transformers; only an explicit null turns the window off.
    const Json* window = fields.find("sliding_window");
    if (window != nullptr) {
      fields.unsupported("sliding_window", "null (no sliding window)");
    }
  } else if (fields.boolean("use_sliding_window", false)) {
    fields.unsupported("use_sliding_window", "false (no sliding window)");
  }
  const Json* types = fields.find("layer_types");
  if (types != nullptr && types->is_array()) {
    for (const Json& type : types->elements()) {
      if (type != "full_attention") {
        throw IoError(
            file, "layer_types",
            fmt::format("expected \"full_attention\", got {}", type.dump(-1, JsonText::ascii)));
      }
    }
  }
}

DType parse_stored_dtype(const Fields& fields) {
  const char* key = fields.find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const std::string name = fields.text(key, "float32");
  if (name == "float32") {
    return DType::f32;
  }
  if (name == "bfloat16") {
    return DType::bf16;
  }
  if (name == "float16") {
    return DType::f16;
  }
  fields.unsupported(key, "\"float32\", \"bfloat16\" or \"float16\"");
}

}  // namespace

ModelConfig parse_hugging_face_config(std::string_view text, std::string_view file) {
  const Json root = parse_strict_json(text, file);
  const Fields fields(root, file);
  const Family& family = find_family(fields, file);
  if (family.model_type == "mistral" && !root.contains("sliding_window")) {
    throw IoError(file, "sliding_window", "missing, which means 4096; only null is supported");
  }
  if (fields.find("quantization_config") != nullptr) {
    throw IoError(file, "quantization_config",
                  "quantised Hugging Face checkpoints are not supported; use a GGUF file");
  }
  if (fields.text("hidden_act", "silu") != "silu") {
    fields.unsupported("hidden_act", "\"silu\"");
  }
  refuse_windows(fields, family, file);

  ModelConfig config;
  config.architecture = family.architecture;
  config.vocabulary_size = fields.integer("vocab_size");
  config.hidden_size = fields.integer("hidden_size");
  config.intermediate_size = fields.integer("intermediate_size");
  config.layers = fields.integer("num_hidden_layers");
  config.heads = fields.integer("num_attention_heads");
  config.kv_heads = fields.integer("num_key_value_heads", config.heads);
  if (family.architecture == "qwen3") {
    config.head_dim = fields.integer("head_dim", 128);
  } else {
    config.head_dim =
        fields.integer("head_dim", config.heads > 0 ? config.hidden_size / config.heads : 0);
  }
  config.max_positions = fields.integer("max_position_embeddings", family.default_positions);
  config.rms_norm_epsilon = fields.number("rms_norm_eps", 1e-6);
  parse_rope(config, fields, file);

  const bool qwen2 = family.architecture == "qwen2";
  const bool bias = family.model_type != "mistral" && fields.boolean("attention_bias", false);
  config.attention_bias = qwen2 || bias;
  config.attention_output_bias = !qwen2 && bias;
  config.mlp_bias = family.model_type == "llama" && fields.boolean("mlp_bias", false);
  config.qk_norm = family.architecture == "qwen3";
  config.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  config.eos_token_ids = fields.token_ids("eos_token_id");
  config.bos_token_id = fields.token_id("bos_token_id");
  config.pad_token_id = fields.token_id("pad_token_id");
  config.stored_dtype = parse_stored_dtype(fields);
  validate(config, file);
  return config;
}

void apply_generation_config(ModelConfig& config, std::string_view text, std::string_view file) {
  const Json root = parse_strict_json(text, file);
  const Fields fields(root, file);
  std::vector<int32_t> ids = fields.token_ids("eos_token_id");
  for (const int32_t id : config.eos_token_ids) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) {
      ids.push_back(id);
    }
  }
  config.eos_token_ids = ids;
  if (const auto bos = fields.token_id("bos_token_id")) {
    config.bos_token_id = bos;
  }
  if (const auto pad = fields.token_id("pad_token_id")) {
    config.pad_token_id = pad;
  }
  validate(config, file);
}

}  // namespace flashloom
