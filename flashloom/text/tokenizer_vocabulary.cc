// A tokenizer as the keys of a GGUF file: the reverse of tokenizer_gguf.cc.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_set>

#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer_data.h"
#include "flashloom/text/tokenizer_gguf.h"

namespace flashloom {
namespace {

enum TokenType : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

// Whether `ids` are put at one side of a text. GGUF can say so of BOS and EOS alone; where no file
// names that token, what is put there is it.
bool adds(std::string_view file, std::span<const int32_t> ids, std::optional<int64_t>& id,
          std::string_view name) {
  if (ids.empty()) {
    return false;
  }
  if (ids.size() != 1 || id.value_or(ids[0]) != ids[0]) {
    throw IoError(file, "post_processor",
                  fmt::format("puts the ids {} at a text's {}, and GGUF can name {} alone",
                              fmt::join(ids, ", "), name == "BOS" ? "begin" : "end", name));
  }
  id = ids[0];
  return true;
}

void describe_tokens(GgufVocabulary& vocabulary, const Tokenizer::Data& data,
                     const TokenizerDescription& description) {
  std::unordered_set<int32_t> added;
  for (const AddedToken& token : description.added) {
    added.insert(token.id);
  }
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const Tokenizer::Data::Token& token = data.tokens[id];
    if (!token.present) {
      vocabulary.tokens.push_back(fmt::format("[PAD{}]", id));
      vocabulary.token_types.push_back(kUnused);
      continue;
    }
    vocabulary.tokens.emplace_back(token.text);
    vocabulary.token_types.push_back(token.special                              ? kControl
                                     : added.contains(static_cast<int32_t>(id)) ? kUserDefined
                                                                                : kNormal);
  }
  for (const auto& [left, right] : description.merges) {
    vocabulary.merges.push_back(fmt::format("{} {}", left, right));
  }
}

}  // namespace

GgufVocabulary Tokenizer::vocabulary() const {
  if (data_->source_vocabulary) {
    return *data_->source_vocabulary;
  }
  GgufVocabulary vocabulary;
  vocabulary.file_name = "tokenizer.json";
  vocabulary.model = "gpt2";  // byte-level BPE
  const auto source = std::find_if(data_->source_files.begin(), data_->source_files.end(),
                                   [](const auto& file) { return file.first == "tokenizer.json"; });
  parse_tokenizer_json(source->second, source->first, [&](const TokenizerDescription& read) {
    vocabulary.pre = gguf_pre_name(read.stages, read.ignore_merges);
    if (vocabulary.pre.empty()) {
      throw IoError(source->first, "pre_tokenizer",
                    fmt::format("llama.cpp has no name for it; those it can be are {}",
                                fmt::join(supported_pre_names(), ", ")));
    }
    describe_tokens(vocabulary, *data_, read);
  });
  vocabulary.bos_id = data_->bos_id;
  vocabulary.eos_id = data_->eos_id;
  vocabulary.unknown_id = data_->unknown_id;
  vocabulary.padding_id = data_->padding_id;
  vocabulary.add_bos = adds(source->first, data_->prefix_ids, vocabulary.bos_id, "BOS");
  vocabulary.add_eos = adds(source->first, data_->suffix_ids, vocabulary.eos_id, "EOS");
  for (const int32_t id : data_->end_ids) {
    // GGUF has room for one end token more; readers find the usual ones by their spelling.
    if (id != data_->eos_id && !is_known_end_token(token(id))) {
      vocabulary.eot_id = id;
      break;
    }
  }
  vocabulary.chat_template = data_->chat_template;
  return vocabulary;
}

}  // namespace flashloom
