#include "flashloom/train/gguf_vocabulary.h"

#include <optional>
#include <utility>

namespace flashloom {

GgufVocabulary gguf_vocabulary(const ModelFiles& files) {
  const StoredVocabulary& stored = *files.vocabulary();
  return {.file_name = files.path(),
          .model = stored.model,
          .pre = stored.pre,
          .tokens = stored.tokens,
          .token_types = stored.token_types,
          .merges = stored.merges,
          .bos_id = stored.bos_id,
          .eos_id = stored.eos_id,
          .eot_id = stored.eot_id,
          .unknown_id = stored.unknown_id,
          .padding_id = stored.padding_id,
          .add_bos = stored.add_bos,
          .add_eos = stored.add_eos,
          .chat_template = stored.chat_template};
}

StoredVocabulary stored_vocabulary(const Tokenizer& tokenizer) {
  GgufVocabulary source = tokenizer.vocabulary();
  const auto narrow = [](std::optional<int64_t> id) {
    // Every id of a tokenizer is below its number of tokens.
    return id ? std::optional(static_cast<int32_t>(*id)) : std::nullopt;
  };
  return {.model = std::move(source.model),
          .pre = std::move(source.pre),
          .tokens = std::move(source.tokens),
          .token_types = std::move(source.token_types),
          .merges = std::move(source.merges),
          .bos_id = narrow(source.bos_id),
          .eos_id = narrow(source.eos_id),
          .eot_id = narrow(source.eot_id),
          .unknown_id = narrow(source.unknown_id),
          .padding_id = narrow(source.padding_id),
          .add_bos = source.add_bos,
          .add_eos = source.add_eos,
          .add_space_prefix = false,  // byte-level BPE never does
          .chat_template = std::move(source.chat_template)};
}

}  // namespace flashloom
