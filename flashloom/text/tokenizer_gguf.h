#pragma once

#include <string_view>
#include <vector>

#include "flashloom/text/pre_tokenizer.h"
#include "flashloom/text/tokenizer.h"
#include "flashloom/text/tokenizer_added.h"

namespace flashloom {

/// What a value of tokenizer.ggml.pre stands for.
struct GgufPreTokenizer {
  std::string_view name;
  KnownPattern pattern;
  bool nfc;
  bool ignore_merges;
  bool add_bos;  ///< where tokenizer.ggml.add_bos_token is absent
};

/// Throws IoError, naming those that are supported.
const GgufPreTokenizer& find_gguf_pre_tokenizer(const GgufVocabulary& vocabulary);

std::vector<PreTokenizerStage> stages_of(KnownPattern pattern);

/// The name of a pre-tokenizer, empty if GGUF has none. Normalisers do not count: llama.cpp applies
/// none, whatever the name.
std::string_view gguf_pre_name(const std::vector<PreTokenizerStage>& stages, bool ignore_merges);

/// Whether llama.cpp takes a control token of this spelling for the end of a turn or document.
bool is_known_end_token(std::string_view token);

/// Control and user-defined tokens, which are matched in the text before anything else.
std::vector<AddedToken> gguf_added_tokens(const GgufVocabulary& vocabulary);

}  // namespace flashloom
