#include "flashloom/io/gguf_export.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <span>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/io/gguf_quantize.h"

namespace flashloom {
namespace {

using RopeScaling = ModelConfig::RopeScaling;

constexpr std::string_view kFactorsName = "rope_freqs.weight";

struct FileType {
  std::string_view name;
  GgmlType type;
  uint32_t file_type;  // general.file_type: "mostly" this
};

constexpr std::array<FileType, 6> kFileTypes = {{{"f32", GgmlType::f32, 0},
                                                 {"f16", GgmlType::f16, 1},
                                                 {"bf16", GgmlType::bf16, 32},
                                                 {"q8_0", GgmlType::q8_0, 7},
                                                 {"q4_0", GgmlType::q4_0, 2},
                                                 {"q4_k", GgmlType::q4_k, 14}}};

constexpr uint32_t kQuantizationVersion = 2;  // of ggml's block layouts

bool is_quantized(GgmlType type) {
  return find_ggml_type(static_cast<uint32_t>(type))->block_elements > 1;
}

bool fits(GgmlType type, int64_t row) {
  return row % find_ggml_type(static_cast<uint32_t>(type))->block_elements == 0;
}

uint32_t file_type_of(GgmlType type) {
  const auto* found = std::find_if(kFileTypes.begin(), kFileTypes.end(),
                                   [&](const FileType& row) { return row.type == type; });
  check(found != kFileTypes.end(), "GgufModelWriter", "type", "one that parse_gguf_type() gives",
        find_ggml_type(static_cast<uint32_t>(type))->name);
  return found->file_type;
}

uint32_t count(int64_t value) {
  return static_cast<uint32_t>(value);
}

void add_config(GgufMetadata& metadata, const ModelConfig& c) {
  const auto key = [&](std::string_view name) {
    return fmt::format("{}.{}", c.architecture, name);
  };
  metadata.add(key("block_count"), count(c.layers));
  metadata.add(key("context_length"), count(c.max_positions));
  metadata.add(key("embedding_length"), count(c.hidden_size));
  metadata.add(key("feed_forward_length"), count(c.intermediate_size));
  metadata.add(key("attention.head_count"), count(c.heads));
  metadata.add(key("attention.head_count_kv"), count(c.kv_heads));
  metadata.add(key("attention.key_length"), count(c.head_dim));
  metadata.add(key("attention.value_length"), count(c.head_dim));
  metadata.add(key("attention.layer_norm_rms_epsilon"), static_cast<float>(c.rms_norm_epsilon));
  metadata.add(key("rope.dimension_count"), count(c.head_dim));
  metadata.add(key("rope.freq_base"), static_cast<float>(c.rope_theta));
  metadata.add(key("vocab_size"), count(c.vocabulary_size));
  if (c.rope_scaling == RopeScaling::linear) {
    metadata.add(key("rope.scaling.type"), "linear");
    metadata.add(key("rope.scaling.factor"), static_cast<float>(c.rope_factor));
  }
}

constexpr int32_t kNormalToken = 1;
constexpr int32_t kUnusedToken = 5;

void add_vocabulary(GgufMetadata& metadata, const ModelConfig& config,
                    const StoredVocabulary& vocabulary) {
  metadata.add("tokenizer.ggml.model", vocabulary.model);
  metadata.add("tokenizer.ggml.pre", vocabulary.pre);
  std::vector<std::string> tokens = vocabulary.tokens;
  std::vector<int32_t> types = vocabulary.token_types;
  types.resize(tokens.size(), kNormalToken);
  check(static_cast<int64_t>(tokens.size()) <= config.vocabulary_size, "GgufModelWriter",
        "vocabulary", fmt::format("at most {} tokens", config.vocabulary_size),
        fmt::format("{}", tokens.size()));
  while (static_cast<int64_t>(tokens.size()) < config.vocabulary_size) {
    tokens.push_back(fmt::format("[PAD{}]", tokens.size()));
    types.push_back(kUnusedToken);
  }
  metadata.add("tokenizer.ggml.tokens", std::span<const std::string>(tokens));
  metadata.add("tokenizer.ggml.token_type", std::span<const int32_t>(types));
  metadata.add("tokenizer.ggml.merges", std::span<const std::string>(vocabulary.merges));
  const auto id = [&](std::string_view name, std::optional<int32_t> value) {
    if (value) {
      metadata.add(fmt::format("tokenizer.ggml.{}_token_id", name), static_cast<uint32_t>(*value));
    }
  };
  id("bos", vocabulary.bos_id);
  id("eos", vocabulary.eos_id);
  id("eot", vocabulary.eot_id);
  id("unknown", vocabulary.unknown_id);
  id("padding", vocabulary.padding_id);
  const auto flag = [&](std::string_view name, std::optional<bool> value) {
    if (value) {
      metadata.add_flag(fmt::format("tokenizer.ggml.{}", name), *value);
    }
  };
  flag("add_bos_token", vocabulary.add_bos);
  flag("add_eos_token", vocabulary.add_eos);
  flag("add_space_prefix", vocabulary.add_space_prefix);
  if (!vocabulary.chat_template.empty()) {
    metadata.add("tokenizer.chat_template", vocabulary.chat_template);
  }
}

// Divisors of the frequencies, where GGUF keeps them in a tensor.
std::vector<float> rope_factors(const ModelConfig& config) {
  if (config.rope_scaling == RopeScaling::factors) {
    return config.rope_factors;
  }
  if (config.rope_scaling != RopeScaling::llama3) {
    return {};
  }
  const std::vector<double> divisors = llama3_divisors(config);
  std::vector<float> factors;
  std::transform(divisors.begin(), divisors.end(), std::back_inserter(factors),
                 [](double divisor) { return static_cast<float>(divisor); });
  return factors;
}

GgufWriter make_writer(const std::string& path, const ModelConfig& config,
                       const StoredVocabulary& vocabulary,
                       const std::vector<GgufModelWriter::Tensor>& tensors,
                       const GgufModelWriter::Options& options) {
  if (config.qk_norm != (config.architecture == "qwen3")) {
    throw Unsupported("GgufModelWriter", "QK norm belongs to Qwen3, and only there");
  }
  GgufMetadata metadata;
  metadata.add("general.architecture", config.architecture);
  metadata.add("general.type", "model");
  if (!options.model_name.empty()) {
    metadata.add("general.name", options.model_name);
  }
  metadata.add("general.file_type", file_type_of(options.type));
  if (is_quantized(options.type)) {
    metadata.add("general.quantization_version", kQuantizationVersion);
  }
  add_config(metadata, config);
  add_vocabulary(metadata, config, vocabulary);
  std::vector<GgufEntry> entries;
  const std::vector<float> factors = rope_factors(config);
  if (!factors.empty()) {
    entries.push_back(
        {.name = std::string(kFactorsName), .shape = {static_cast<int64_t>(factors.size())}});
  }
  for (const GgufModelWriter::Tensor& tensor : tensors) {
    entries.push_back({.name = gguf_tensor_name(tensor.name),
                       .type = gguf_stored_type(options.type, config, tensor.name, tensor.shape),
                       .shape = tensor.shape,
                       .interleaved_heads = permuted_heads(config, tensor.name)});
  }
  GgufWriter writer(path, metadata, std::move(entries));
  if (!factors.empty()) {
    writer.write(kFactorsName,
                 ConstTensorView(factors.data(), {static_cast<int64_t>(factors.size())}));
  }
  return writer;
}

}  // namespace

GgmlType parse_gguf_type(std::string_view name) {
  std::string names;
  for (const FileType& row : kFileTypes) {
    if (row.name == name) {
      return row.type;
    }
    names += names.empty() ? "" : ", ";
    names += row.name;
  }
  throw InvalidArgument("parse_gguf_type", "name", names, name);
}

GgmlType gguf_stored_type(GgmlType type, const ModelConfig& config,
                          std::string_view hugging_face_name, const std::vector<int64_t>& shape) {
  if (shape.size() < 2) {
    return GgmlType::f32;
  }
  if (!is_quantized(type)) {
    return type;
  }
  const bool head = hugging_face_name == "lm_head.weight" ||
                    (config.tied_embeddings && hugging_face_name == "model.embed_tokens.weight");
  const int64_t row = shape.back();
  if (head) {
    type = GgmlType::q8_0;
  }
  if (type == GgmlType::q4_k && !fits(type, row)) {
    type = GgmlType::q5_0;
  }
  return fits(type, row) ? type : GgmlType::f16;
}

GgufModelWriter::GgufModelWriter(const std::string& path, const ModelConfig& config,
                                 const StoredVocabulary& vocabulary,
                                 const std::vector<Tensor>& tensors, const Options& options)
    : writer_(make_writer(path, config, vocabulary, tensors, options)) {}

void GgufModelWriter::write(std::string_view hugging_face_name, const ConstTensorView& values) {
  writer_.write(gguf_tensor_name(hugging_face_name), values);
}

}  // namespace flashloom
