#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/io/gguf.h"
#include "flashloom/io/model_config.h"

namespace flashloom {

/// The vocabulary inside a GGUF file, as it stands there.
struct StoredVocabulary {
  std::string model;                 // "gpt2" is byte-level BPE
  std::string pre;                   // name of the pre-tokenizer: "smollm", "qwen2", "llama-bpe"
  std::vector<std::string> tokens;   // by id
  std::vector<int32_t> token_types;  // 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte
  std::vector<std::string> merges;   // "left right", best first
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> eot_id;  // end of a turn, where it differs
  std::optional<int32_t> unknown_id;
  std::optional<int32_t> padding_id;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
  std::string chat_template;  // Jinja; empty if there is none
};

/// Throws IoError if a key has the wrong type, an id no token, or there are more token types than
/// tokens. A file without a vocabulary gives an empty one.
StoredVocabulary read_gguf_vocabulary(const GgufFile& file);

/// The config of a Llama, Qwen2 or Qwen3, from the metadata and, where GGUF has no key for it
/// (biases, tied embeddings, vocabulary size), from which tensors there are. llama3's rotary
/// scaling is recognised by its factors. Throws IoError for other architectures, parts of a split
/// file, mixtures of experts, and what validate() refuses.
ModelConfig read_gguf_config(const GgufFile& file);

/// The Hugging Face name of a tensor ("blk.3.attn_q.weight" is
/// "model.layers.3.self_attn.q_proj.weight"); the name itself if there is none.
std::string hugging_face_tensor_name(std::string_view gguf_name);

/// The reverse of hugging_face_tensor_name(); the name itself if GGUF has none for it.
std::string gguf_tensor_name(std::string_view hugging_face_name);

/// Divisors of the rotary frequencies under llama3's scaling (Llama 3.1: long wavelengths are
/// divided by rope_factor, short ones kept, those between interpolated); GGUF stores these.
std::vector<double> llama3_divisors(const ModelConfig& config);

/// Heads whose rows the file holds in another order than Hugging Face, 0 for none. llama.cpp's
/// converter interleaves the two halves of each head of Q and K (weights and biases) for the
/// architecture "llama" only: row h·d + 2i + half there is row h·d + half·d/2 + i here.
int64_t permuted_heads(const ModelConfig& config, std::string_view hugging_face_name);

}  // namespace flashloom
