// A tokenizer from the keys of a GGUF file. GGUF names the pre-tokenizer instead of spelling it.
#include "flashloom/text/tokenizer_gguf.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer_data.h"

namespace flashloom {
namespace {

// Names as llama.cpp gives them to these four tokenizers; what stands beside each is what the
// Hugging Face tokenizer of the same models does.
constexpr std::array kPreTokenizers = {
    GgufPreTokenizer{"gpt-2", KnownPattern::kGpt2, false, false, false},
    GgufPreTokenizer{"smollm", KnownPattern::kDigitsGpt2, false, false, false},
    GgufPreTokenizer{"starcoder", KnownPattern::kDigitsGpt2, false, false, false},
    GgufPreTokenizer{"qwen2", KnownPattern::kQwen2, true, false, false},
    GgufPreTokenizer{"deepseek-r1-qwen", KnownPattern::kQwen2, true, false, true},
    GgufPreTokenizer{"llama-bpe", KnownPattern::kLlama3, false, true, true},
    GgufPreTokenizer{"llama3", KnownPattern::kLlama3, false, true, true},
    GgufPreTokenizer{"llama-v3", KnownPattern::kLlama3, false, true, true},
};

// Control tokens that end a turn or a document. A GGUF file has one eos key and often forgets the
// other; llama.cpp, too, goes by these names.
constexpr std::array<std::string_view, 9> kEndTokens = {
    "<|im_end|>",      "<|eot_id|>",    "<|eom_id|>",
    "<|end_of_text|>", "<|endoftext|>", "<|end_of_turn|>",
    "<end_of_turn>",   "<|end|>",       "<EOT>"};

enum TokenType { kControl = 3, kUserDefined = 4 };

std::optional<int32_t> check_id(const GgufVocabulary& vocabulary, std::string_view key,
                                std::optional<int64_t> id) {
  if (!id) {
    return std::nullopt;
  }
  if (*id < 0 || static_cast<uint64_t>(*id) >= vocabulary.tokens.size()) {
    throw IoError(vocabulary.file_name, key,
                  fmt::format("id {}, expected 0 to {}", *id,
                              static_cast<int64_t>(vocabulary.tokens.size()) - 1));
  }
  return static_cast<int32_t>(*id);
}

}  // namespace

const GgufPreTokenizer& find_gguf_pre_tokenizer(const GgufVocabulary& vocabulary) {
  for (const GgufPreTokenizer& known : kPreTokenizers) {
    if (vocabulary.pre == known.name) {
      return known;
    }
  }
  throw IoError(vocabulary.file_name, "tokenizer.ggml.pre",
                fmt::format("the pre-tokenizer '{}' is not supported ({})", vocabulary.pre,
                            fmt::join(Tokenizer::supported_pre_names(), ", ")));
}

std::vector<std::string_view> Tokenizer::supported_pre_names() {
  std::vector<std::string_view> names;
  names.reserve(std::size(kPreTokenizers));
  for (const GgufPreTokenizer& known : kPreTokenizers) {
    names.push_back(known.name);
  }
  return names;
}

std::vector<PreTokenizerStage> stages_of(KnownPattern pattern) {
  std::vector<PreTokenizerStage> stages;
  if (pattern == KnownPattern::kDigitsGpt2) {
    PreTokenizerStage digits;
    digits.kind = PreTokenizerStage::kDigits;
    digits.individual = true;
    stages.push_back(digits);
  }
  PreTokenizerStage stage;
  stage.kind = PreTokenizerStage::kPattern;
  stage.pattern = pattern == KnownPattern::kQwen2    ? kQwen2Pattern
                  : pattern == KnownPattern::kLlama3 ? kLlama3Pattern
                                                     : kGpt2Pattern;
  stages.push_back(stage);
  return stages;
}

std::string_view gguf_pre_name(const std::vector<PreTokenizerStage>& stages, bool ignore_merges) {
  for (const GgufPreTokenizer& known : kPreTokenizers) {
    if (known.ignore_merges == ignore_merges && stages_of(known.pattern) == stages) {
      return known.name;
    }
  }
  return {};
}

bool is_known_end_token(std::string_view token) {
  return std::find(kEndTokens.begin(), kEndTokens.end(), token) != kEndTokens.end();
}

std::vector<AddedToken> gguf_added_tokens(const GgufVocabulary& vocabulary) {
  std::vector<AddedToken> added;
  for (size_t id = 0; id < vocabulary.token_types.size(); ++id) {
    const int32_t type = vocabulary.token_types[id];
    if (type == kControl || type == kUserDefined) {
      AddedToken token;
      token.content = vocabulary.tokens[id];
      token.id = static_cast<int32_t>(id);
      token.special = type == kControl;
      added.push_back(std::move(token));
    }
  }
  return added;
}

Tokenizer Tokenizer::from_vocabulary(GgufVocabulary source) {
  const auto shared = std::make_shared<const GgufVocabulary>(std::move(source));
  const GgufVocabulary& vocabulary = *shared;
  const auto fail = [&](std::string_view place, const std::string& what) {
    throw IoError(vocabulary.file_name, place, what);
  };
  if (vocabulary.model != "gpt2") {
    fail("tokenizer.ggml.model", fmt::format("the model '{}' is not supported (gpt2, which is "
                                             "byte-level BPE)",
                                             vocabulary.model));
  }
  const GgufPreTokenizer& pre_tokenizer = find_gguf_pre_tokenizer(vocabulary);
  if (vocabulary.tokens.empty()) {
    fail("tokenizer.ggml.tokens", "expected tokens, found none");
  }
  if (vocabulary.tokens.size() > INT32_MAX) {
    fail("tokenizer.ggml.tokens",
         fmt::format("{} tokens, expected at most {}", vocabulary.tokens.size(), INT32_MAX));
  }
  if (!vocabulary.token_types.empty() &&
      vocabulary.token_types.size() != vocabulary.tokens.size()) {
    fail("tokenizer.ggml.token_type",
         fmt::format("{} types, expected one for each of {} tokens", vocabulary.token_types.size(),
                     vocabulary.tokens.size()));
  }

  TokenizerDescription description;
  description.file_name = vocabulary.file_name;
  description.vocabulary_place = "tokenizer.ggml.tokens";
  description.merges_place = "tokenizer.ggml.merges";
  description.nfc = pre_tokenizer.nfc;
  description.ignore_merges = pre_tokenizer.ignore_merges;
  description.stages = stages_of(pre_tokenizer.pattern);
  description.added = gguf_added_tokens(vocabulary);
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    description.vocabulary.push_back({vocabulary.tokens[id], static_cast<int64_t>(id)});
  }
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    const std::string_view merge = vocabulary.merges[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      fail(fmt::format("tokenizer.ggml.merges[{}]", i),
           fmt::format("expected 'left right', got '{}'", merge));
    }
    description.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }

  const auto bos = check_id(vocabulary, "tokenizer.ggml.bos_token_id", vocabulary.bos_id);
  const auto eos = check_id(vocabulary, "tokenizer.ggml.eos_token_id", vocabulary.eos_id);
  if (vocabulary.add_bos.value_or(pre_tokenizer.add_bos) && bos) {
    description.prefix_ids.push_back(*bos);
  }
  if (vocabulary.add_eos.value_or(false) && eos) {
    description.suffix_ids.push_back(*eos);
  }
  auto data = make_tokenizer_data(description);
  data->bos_id = bos;
  data->eos_id = eos;
  data->unknown_id = check_id(vocabulary, "tokenizer.ggml.unknown_token_id", vocabulary.unknown_id);
  data->padding_id = check_id(vocabulary, "tokenizer.ggml.padding_token_id", vocabulary.padding_id);
  const auto add_end = [&](std::optional<int32_t> id) {
    if (id && std::find(data->end_ids.begin(), data->end_ids.end(), *id) == data->end_ids.end()) {
      data->end_ids.push_back(*id);
    }
  };
  add_end(eos);
  add_end(check_id(vocabulary, "tokenizer.ggml.eot_token_id", vocabulary.eot_id));
  add_end(check_id(vocabulary, "tokenizer.ggml.eom_token_id", vocabulary.eom_id));
  for (const std::string_view name : kEndTokens) {
    const auto found = data->ids.find(name);
    if (found != data->ids.end() && data->tokens[static_cast<size_t>(found->second)].special) {
      add_end(found->second);
    }
  }
  data->chat_template = vocabulary.chat_template;
  data->source_vocabulary = shared;
  return Tokenizer(std::move(data));
}

}  // namespace flashloom
