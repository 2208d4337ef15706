#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flashloom {

/// The tokenizer keys of a GGUF file, as its reader finds them. Ids are 64-bit so that a hostile
/// value arrives here unchanged and is refused by name.
struct GgufVocabulary {
  std::string file_name;             ///< for errors
  std::string model;                 ///< tokenizer.ggml.model; only "gpt2" (byte-level BPE)
  std::string pre;                   ///< tokenizer.ggml.pre
  std::vector<std::string> tokens;   ///< tokenizer.ggml.tokens, the id is the index
  std::vector<int32_t> token_types;  ///< tokenizer.ggml.token_type: 1 normal, 2 unknown, 3 control,
                                     ///< 4 user defined, 5 unused, 6 byte; empty: all normal
  std::vector<std::string> merges;   ///< tokenizer.ggml.merges, "left right", best first
  std::optional<int64_t> bos_id;     ///< tokenizer.ggml.bos_token_id
  std::optional<int64_t> eos_id;     ///< tokenizer.ggml.eos_token_id
  std::optional<int64_t> eot_id;     ///< tokenizer.ggml.eot_token_id
  std::optional<int64_t> eom_id;     ///< tokenizer.ggml.eom_token_id
  std::optional<int64_t> unknown_id;  ///< tokenizer.ggml.unknown_token_id
  std::optional<int64_t> padding_id;  ///< tokenizer.ggml.padding_token_id
  std::optional<bool> add_bos;        ///< tokenizer.ggml.add_bos_token; absent: as `pre` has it
  std::optional<bool> add_eos;        ///< tokenizer.ggml.add_eos_token; absent: false
  std::string chat_template;          ///< tokenizer.chat_template, Jinja; may be empty
};

struct EncodeOptions {
  bool add_special_tokens = true;    ///< apply the post-processor (BOS and the like)
  bool parse_special_tokens = true;  ///< recognise special tokens that stand in the text
};

/// Byte-level BPE with the ids of Hugging Face `tokenizers`. A value: copies share one immutable
/// vocabulary, and every const member may be called from several threads at once.
///
/// Text that is not UTF-8 is read as `bytes.decode("utf-8", errors="replace")` reads it: each
/// maximal invalid part becomes one U+FFFD. Unicode is version 16 for letters, numbers and spaces.
class Tokenizer {
 public:
  /// A Hugging Face `tokenizer.json`. `file_name` is for errors. There is no BOS, EOS, padding or
  /// chat template: those stand in other files (see from_directory).
  /// Throws IoError naming the file and the place ("model.merges[12]", "byte 400").
  static Tokenizer from_json(std::string_view text, std::string_view file_name);

  /// A directory written by transformers 4 or 5: tokenizer.json, and where they exist
  /// tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
  /// chat_template.jinja.
  static Tokenizer from_directory(const std::filesystem::path& directory);

  /// What a GGUF file holds. Ids are those of the Hugging Face tokenizer of the same model: where
  /// it normalises (NFC for Qwen2), so does this, although llama.cpp does not.
  static Tokenizer from_vocabulary(GgufVocabulary vocabulary);

  /// The values of GgufVocabulary::pre that from_vocabulary knows.
  static std::vector<std::string_view> supported_pre_names();

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// Appends to `ids`; saves the allocation when many texts are encoded.
  void encode_append(std::vector<int32_t>& ids, std::string_view text,
                     const EncodeOptions& options = {}) const;

  /// The text of `ids`, always valid UTF-8 (invalid parts become U+FFFD). An id that names no token
  /// (rows that pad the embedding) has no text. `skip_special` leaves out special tokens.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  /// The bytes of one token, not necessarily whole characters; empty for an id without a token.
  std::string_view token_bytes(int32_t id) const;

  /// The largest id + 1. Ids below it may be unused.
  int32_t vocabulary_size() const;
  /// By the token's own spelling: "Ġthe" for " the", "<|im_end|>" for itself.
  std::optional<int32_t> token_id(std::string_view token) const;
  /// Spelling of a token; empty for an id without a token.
  std::string_view token(int32_t id) const;
  /// A token that decode(…, skip_special) leaves out.
  bool is_special(int32_t id) const;

  std::optional<int32_t> bos_id() const;
  /// The end-of-sequence token that closes a training text: `eos_token` of tokenizer_config.json,
  /// else of generation_config.json, config.json (a list: its first), or the GGUF key.
  std::optional<int32_t> eos_id() const;
  /// Every token that ends a generation: eos_id() and all that any of those files name.
  std::span<const int32_t> end_ids() const;
  bool is_end(int32_t id) const;
  std::optional<int32_t> padding_id() const;
  std::optional<int32_t> unknown_id() const;

  /// Ids that encode() puts before and behind a text when it adds special tokens.
  std::span<const int32_t> prefix_ids() const;
  std::span<const int32_t> suffix_ids() const;

  /// The Jinja source of the model's chat template; empty if it has none.
  const std::string& chat_template() const;

  /// Name and content of the files that make transformers load this tokenizer with the same ids:
  /// tokenizer.json, tokenizer_config.json and, with a chat template, chat_template.jinja. Files
  /// read by from_directory come back as they were.
  std::vector<std::pair<std::string, std::string>> files() const;

  /// The same as the keys of a GGUF file: what from_vocabulary() makes this tokenizer of. Ids
  /// without a token become unused tokens. Throws IoError if llama.cpp has no name for the
  /// pre-tokenizer, or other ids than BOS and EOS are put around a text.
  GgufVocabulary vocabulary() const;

  struct Data;

  explicit Tokenizer(std::shared_ptr<const Data> data) : data_(std::move(data)) {}

 private:
  std::shared_ptr<const Data> data_;
};

/// Decodes a stream of ids: what push() returns is whole characters, and everything returned until
/// finish() equals decode() of all ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = false)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  /// The text that is certain now; empty while a character is incomplete.
  std::string push(int32_t id);
  /// What is left: U+FFFD for a character that never became whole.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::string pending_;  // bytes of an incomplete character
};

}  // namespace flashloom
