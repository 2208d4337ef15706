#include "flashloom/io/gguf_model.h"

#include <fmt/format.h>

#include <charconv>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

struct NamePair {
  std::string_view gguf;
  std::string_view hugging_face;
};

constexpr NamePair kTop[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};

constexpr NamePair kInLayer[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

std::optional<int32_t> token_id(const GgufFile& file, std::string_view key, size_t tokens) {
  const std::optional<int64_t> id = file.integer(key);
  if (!id) {
    return std::nullopt;
  }
  if (*id < 0 || *id >= static_cast<int64_t>(tokens)) {
    throw IoError(file.path(), key, fmt::format("id {} is not one of the {} tokens", *id, tokens));
  }
  return static_cast<int32_t>(*id);
}

std::vector<std::string> strings(const GgufFile& file, std::string_view key) {
  const GgufArray* array = file.array(key);
  if (array == nullptr) {
    return {};
  }
  if (array->type != GgufType::string) {
    throw IoError(file.path(), key,
                  fmt::format("expected strings, got {}", gguf_type_name(array->type)));
  }
  return {array->strings.begin(), array->strings.end()};
}

std::vector<int32_t> read_token_types(const GgufFile& file, size_t tokens) {
  constexpr std::string_view kKey = "tokenizer.ggml.token_type";
  const GgufArray* array = file.array(kKey);
  if (array == nullptr) {
    return {};
  }
  if (array->count != tokens) {
    throw IoError(
        file.path(), kKey,
        fmt::format("expected one of each of the {} tokens, got {}", tokens, array->count));
  }
  std::vector<int32_t> types;
  types.reserve(array->count);
  for (size_t i = 0; i < array->count; ++i) {
    const std::optional<int64_t> type = array->integer(i);
    constexpr int64_t kLastType = 6;
    if (!type || *type < 0 || *type > kLastType) {
      throw IoError(file.path(), kKey, fmt::format("entry {} is not a token type (0 to 6)", i));
    }
    types.push_back(static_cast<int32_t>(*type));
  }
  return types;
}

}  // namespace

std::string hugging_face_tensor_name(std::string_view gguf_name) {
  const size_t dot = gguf_name.rfind('.');
  if (dot == std::string_view::npos) {
    return std::string(gguf_name);
  }
  const std::string_view kind = gguf_name.substr(dot);  // ".weight", ".bias"
  std::string_view stem = gguf_name.substr(0, dot);
  if (kind != ".weight" && kind != ".bias") {
    return std::string(gguf_name);
  }
  for (const NamePair& pair : kTop) {
    if (stem == pair.gguf) {
      return fmt::format("{}{}", pair.hugging_face, kind);
    }
  }
  constexpr std::string_view kBlock = "blk.";
  if (!stem.starts_with(kBlock)) {
    return std::string(gguf_name);
  }
  stem.remove_prefix(kBlock.size());
  int32_t layer = 0;
  const auto [end, error] = std::from_chars(stem.data(), stem.data() + stem.size(), layer);
  stem.remove_prefix(static_cast<size_t>(end - stem.data()));
  if (error != std::errc() || layer < 0 || !stem.starts_with('.')) {
    return std::string(gguf_name);
  }
  stem.remove_prefix(1);
  for (const NamePair& pair : kInLayer) {
    if (stem == pair.gguf) {
      return fmt::format("model.layers.{}.{}{}", layer, pair.hugging_face, kind);
    }
  }
  return std::string(gguf_name);
}

std::string gguf_tensor_name(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) {
    return std::string(name);
  }
  const std::string_view kind = name.substr(dot);
  std::string_view stem = name.substr(0, dot);
  for (const NamePair& pair : kTop) {
    if (stem == pair.hugging_face) {
      return fmt::format("{}{}", pair.gguf, kind);
    }
  }
  constexpr std::string_view kLayers = "model.layers.";
  const size_t end = stem.find('.', kLayers.size());
  if (stem.starts_with(kLayers) && end != std::string_view::npos) {
    for (const NamePair& pair : kInLayer) {
      if (stem.substr(end + 1) == pair.hugging_face) {
        return fmt::format("blk.{}.{}{}", stem.substr(kLayers.size(), end - kLayers.size()),
                           pair.gguf, kind);
      }
    }
  }
  return std::string(name);
}

int64_t permuted_heads(const ModelConfig& config, std::string_view hugging_face_name) {
  if (config.architecture != "llama") {
    return 0;
  }
  const size_t dot = hugging_face_name.rfind('.');
  const std::string_view stem = hugging_face_name.substr(0, dot);
  if (stem.ends_with(".self_attn.q_proj")) {
    return config.heads;
  }
  return stem.ends_with(".self_attn.k_proj") ? config.kv_heads : 0;
}

StoredVocabulary read_gguf_vocabulary(const GgufFile& file) {
  StoredVocabulary vocabulary;
  vocabulary.model = file.text("tokenizer.ggml.model").value_or("");
  vocabulary.pre = file.text("tokenizer.ggml.pre").value_or("");
  vocabulary.tokens = strings(file, "tokenizer.ggml.tokens");
  vocabulary.merges = strings(file, "tokenizer.ggml.merges");
  const size_t tokens = vocabulary.tokens.size();
  vocabulary.token_types = read_token_types(file, tokens);
  vocabulary.bos_id = token_id(file, "tokenizer.ggml.bos_token_id", tokens);
  vocabulary.eos_id = token_id(file, "tokenizer.ggml.eos_token_id", tokens);
  vocabulary.eot_id = token_id(file, "tokenizer.ggml.eot_token_id", tokens);
  vocabulary.unknown_id = token_id(file, "tokenizer.ggml.unknown_token_id", tokens);
  vocabulary.padding_id = token_id(file, "tokenizer.ggml.padding_token_id", tokens);
  vocabulary.add_bos = file.boolean("tokenizer.ggml.add_bos_token");
  vocabulary.add_eos = file.boolean("tokenizer.ggml.add_eos_token");
  vocabulary.add_space_prefix = file.boolean("tokenizer.ggml.add_space_prefix");
  vocabulary.chat_template = file.text("tokenizer.chat_template").value_or("");
  return vocabulary;
}

}  // namespace flashloom
