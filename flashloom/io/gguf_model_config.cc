#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "flashloom/core/error.h"
#include "flashloom/io/gguf_dequantize.h"
#include "flashloom/io/gguf_model.h"

namespace flashloom {

std::vector<double> llama3_divisors(const ModelConfig& config) {
  const double low_wavelength =
      static_cast<double>(config.rope_original_positions) / config.rope_low_frequency_factor;
  const double high_wavelength =
      static_cast<double>(config.rope_original_positions) / config.rope_high_frequency_factor;
  std::vector<double> divisors;
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    const double wavelength = 2 * std::numbers::pi * std::pow(config.rope_theta, exponent);
    if (wavelength < high_wavelength) {
      divisors.push_back(1);
    } else if (wavelength > low_wavelength) {
      divisors.push_back(config.rope_factor);
    } else {
      const double smooth = (static_cast<double>(config.rope_original_positions) / wavelength -
                             config.rope_low_frequency_factor) /
                            (config.rope_high_frequency_factor - config.rope_low_frequency_factor);
      divisors.push_back(1 / ((1 - smooth) / config.rope_factor + smooth));
    }
  }
  return divisors;
}

namespace {

using RopeScaling = ModelConfig::RopeScaling;

// Keys "<architecture>.<name>".
class Keys {
 public:
  Keys(const GgufFile& file, std::string architecture)
      : file_(file), prefix_(std::move(architecture) + ".") {}

  int64_t integer(std::string_view name) const {
    const auto value = file_.integer(prefix_ + std::string(name));
    if (!value) {
      throw IoError(file_.path(), prefix_ + std::string(name), "missing");
    }
    return *value;
  }

  int64_t integer(std::string_view name, int64_t otherwise) const {
    return file_.integer(prefix_ + std::string(name)).value_or(otherwise);
  }

  double number(std::string_view name, double otherwise) const {
    return file_.number(prefix_ + std::string(name)).value_or(otherwise);
  }

  std::string text(std::string_view name, std::string_view otherwise) const {
    return std::string(file_.text(prefix_ + std::string(name)).value_or(otherwise));
  }

  [[noreturn]] void unsupported(std::string_view name, std::string_view what) const {
    throw IoError(file_.path(), prefix_ + std::string(name), what);
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

// GGUF stores llama3's scaling as a tensor of divisors only. Every published Llama 3.1, 3.2 and 3.3
// has low 1, high 4, original positions 8192; the factor is the largest divisor.
void recognise_factors(ModelConfig& config, std::vector<float> factors) {
  ModelConfig guess = config;
  guess.rope_scaling = RopeScaling::llama3;
  guess.rope_factor = *std::max_element(factors.begin(), factors.end());
  guess.rope_low_frequency_factor = 1;
  guess.rope_high_frequency_factor = 4;
  guess.rope_original_positions = 8192;
  const std::vector<double> divisors = llama3_divisors(guess);
  bool same = guess.rope_factor > 1;
  for (size_t i = 0; i < factors.size() && same; ++i) {
    // The converter computes in float32: a relative error far below 1e-4.
    same = std::fabs(factors[i] - divisors[i]) <= 1e-4 * divisors[i];
  }
  if (same) {
    config = guess;
  } else {
    config.rope_scaling = RopeScaling::factors;
    config.rope_factors = std::move(factors);
  }
}

void read_rope(ModelConfig& config, const GgufFile& file, const Keys& keys) {
  if (keys.integer("rope.dimension_count", config.head_dim) != config.head_dim) {
    keys.unsupported("rope.dimension_count",
                     fmt::format("expected the whole head ({}) to be rotated", config.head_dim));
  }
  const std::string type = keys.text("rope.scaling.type", "none");
  if (type == "linear") {
    config.rope_scaling = RopeScaling::linear;
    config.rope_factor = keys.number("rope.scaling.factor", 1);
  } else if (type != "none") {
    keys.unsupported("rope.scaling.type",
                     fmt::format("expected \"none\" or \"linear\", got \"{}\"", type));
  }
  const GgufTensor* tensor = file.find_tensor("rope_freqs.weight");
  if (tensor == nullptr) {
    return;
  }
  const int64_t pairs = config.head_dim / 2;
  if (tensor->shape != std::vector<int64_t>{pairs} || tensor->type.name != "F32" ||
      config.rope_scaling != RopeScaling::none) {
    throw IoError(file.path(), "tensor rope_freqs.weight",
                  fmt::format("expected {} F32 numbers and no other rotary scaling", pairs));
  }
  std::vector<float> factors(static_cast<size_t>(pairs));
  gguf_dequantize(GgmlType::f32, tensor->bytes, factors);
  recognise_factors(config, std::move(factors));
}

void read_token_ids(ModelConfig& config, const GgufFile& file) {
  const auto id_of = [&](std::string_view key) -> std::optional<int32_t> {
    const std::optional<int64_t> id = file.integer(key);
    if (id && (*id < 0 || *id > INT32_MAX)) {
      throw IoError(file.path(), key, fmt::format("expected a token id, got {}", *id));
    }
    return id ? std::optional(static_cast<int32_t>(*id)) : std::nullopt;
  };
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto id = id_of(key);
    auto& ids = config.eos_token_ids;
    if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) {
      ids.push_back(*id);
    }
  }
  config.bos_token_id = id_of("tokenizer.ggml.bos_token_id");
  config.pad_token_id = id_of("tokenizer.ggml.padding_token_id");
}

void refuse_other_kinds(const GgufFile& file, const Keys& keys, int64_t context) {
  if (file.integer("split.count").value_or(1) > 1) {
    throw IoError(file.path(), "split.count",
                  "split GGUF files are not supported; merge the parts");
  }
  if (keys.integer("expert_count", 0) > 0) {
    keys.unsupported("expert_count", "mixtures of experts are not supported");
  }
  const int64_t window = keys.integer("attention.sliding_window", 0);
  if (window > 0 && window < context) {
    keys.unsupported("attention.sliding_window", "sliding windows are not supported");
  }
}

}  // namespace

ModelConfig read_gguf_config(const GgufFile& file) {
  const std::string architecture(file.text("general.architecture").value_or("nothing"));
  constexpr std::array<std::string_view, 3> kArchitectures = {"llama", "qwen2", "qwen3"};
  if (std::find(kArchitectures.begin(), kArchitectures.end(), architecture) ==
      kArchitectures.end()) {
    throw IoError(file.path(), "general.architecture",
                  fmt::format("expected llama, qwen2 or qwen3, got {}", architecture));
  }
  const Keys keys(file, architecture);
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    throw IoError(file.path(), "tensor token_embd.weight",
                  embedding == nullptr ? "missing" : "expected two dimensions");
  }

  ModelConfig config;
  config.architecture = architecture;
  config.vocabulary_size = embedding->shape[0];
  config.hidden_size = keys.integer("embedding_length");
  config.intermediate_size = keys.integer("feed_forward_length");
  config.layers = keys.integer("block_count");
  config.heads = keys.integer("attention.head_count");
  config.kv_heads = keys.integer("attention.head_count_kv", config.heads);
  config.head_dim = keys.integer("attention.key_length",
                                 config.heads > 0 ? config.hidden_size / config.heads : 0);
  if (keys.integer("attention.value_length", config.head_dim) != config.head_dim) {
    keys.unsupported("attention.value_length", "expected the same as attention.key_length");
  }
  config.max_positions = keys.integer("context_length");
  config.rms_norm_epsilon = keys.number("attention.layer_norm_rms_epsilon", 1e-6);

  const auto has = [&](const char* name) { return file.find_tensor(name) != nullptr; };
  config.attention_bias = has("blk.0.attn_q.bias");
  config.attention_output_bias = has("blk.0.attn_output.bias");
  config.mlp_bias = has("blk.0.ffn_gate.bias");
  config.qk_norm = has("blk.0.attn_q_norm.weight");
  config.tied_embeddings = !has("output.weight");
  read_token_ids(config, file);
  // Quantised weights are exported as f32, the only type that holds them exactly.
  config.stored_dtype = embedding->type.name == "F16"    ? DType::f16
                        : embedding->type.name == "BF16" ? DType::bf16
                                                         : DType::f32;
  config.rope_theta = keys.number("rope.freq_base", 10000.0);
  validate(config, file.path());  // before head_dim sizes anything
  read_rope(config, file, keys);
  refuse_other_kinds(file, keys, config.max_positions);
  validate(config, file.path());
  return config;
}

}  // namespace flashloom
