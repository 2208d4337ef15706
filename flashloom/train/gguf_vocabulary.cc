#include "flashloom/train/gguf_vocabulary.h"

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

}  // namespace flashloom
