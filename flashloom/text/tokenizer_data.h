#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "flashloom/core/function_ref.h"
#include "flashloom/text/bpe.h"
#include "flashloom/text/pre_tokenizer.h"
#include "flashloom/text/tokenizer.h"
#include "flashloom/text/tokenizer_added.h"

namespace flashloom {

/// A tokenizer as its file tells it, before anything is checked against anything else. Views
/// belong to the loader.
struct TokenizerDescription {
  struct Entry {
    std::string_view token;
    int64_t id;
  };

  std::string file_name;
  std::string vocabulary_place;  ///< names in errors: "model.vocab", "tokenizer.ggml.tokens"
  std::string merges_place;
  std::vector<Entry> vocabulary;
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  std::string_view unknown_token;  ///< empty: none
  bool ignore_merges = false;
  bool byte_fallback = false;
  bool fuse_unknown = false;
  bool nfc = false;
  std::vector<AddedToken> added;
  std::vector<PreTokenizerStage> stages;  ///< what comes before the bytes
  std::vector<int32_t> prefix_ids;
  std::vector<int32_t> suffix_ids;
};

struct Tokenizer::Data {
  struct Token {
    std::string_view text;   // of `arena`
    std::string_view bytes;  // of `arena`
    bool special = false;
    bool present = false;
  };

  explicit Data(const Bpe& model) : bpe(model) {}

  std::string arena;
  std::vector<Token> tokens;  // by id
  std::unordered_map<std::string_view, int32_t> ids;
  Bpe bpe;
  bool nfc = false;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  AddedTokenMatcher raw_added;         // on the text as it comes
  AddedTokenMatcher normalized_added;  // on normalised text
  std::vector<int32_t> prefix_ids;
  std::vector<int32_t> suffix_ids;

  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> padding_id;
  std::optional<int32_t> unknown_id;
  std::vector<int32_t> end_ids;
  std::string chat_template;

  // What files() gives back: files as they were read, or what to write them from.
  std::vector<std::pair<std::string, std::string>> source_files;
  std::shared_ptr<const GgufVocabulary> source_vocabulary;

  // Scratch memory of encode(), one for each call that runs at this moment, kept for the next.
  std::unique_ptr<BpeScratch> take_scratch() const;
  void give_scratch(std::unique_ptr<BpeScratch> scratch) const;
  mutable std::mutex scratch_mutex;
  mutable std::vector<std::unique_ptr<BpeScratch>> free_scratch;
};

/// Checks a description and builds what encode and decode need. Throws IoError.
std::shared_ptr<Tokenizer::Data> make_tokenizer_data(const TokenizerDescription& description);

/// Calls `use` with what a tokenizer.json says, whose views end with the call. Throws IoError.
void parse_tokenizer_json(std::string_view text, std::string_view file_name,
                          FunctionRef<void(const TokenizerDescription&)> use);

/// Reads tokenizer.json. Throws IoError.
std::shared_ptr<Tokenizer::Data> read_tokenizer_json(std::string_view text,
                                                     std::string_view file_name);

/// The byte that the character `code_point` of a byte-level vocabulary stands for, or -1, and the
/// other way round: 33-126, 161-172, 174-255 stand for themselves, the others for 256, 257, …
int byte_of_character(uint32_t code_point);
uint32_t character_of_byte(unsigned byte);

}  // namespace flashloom
