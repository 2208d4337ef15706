#include "flashloom/train/model_bundle.h"

#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/train/gguf_vocabulary.h"

namespace flashloom {

Tokenizer open_tokenizer(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    return Tokenizer::from_directory(path);
  }
  return Tokenizer::from_vocabulary(gguf_vocabulary(ModelFiles::open(path)));
}

ModelBundle open_model(const std::string& path) {
  ModelFiles files = ModelFiles::open(path);
  Tokenizer tokenizer = files.vocabulary() != nullptr
                            ? Tokenizer::from_vocabulary(gguf_vocabulary(files))
                            : Tokenizer::from_directory(path);
  // Ids that the embedding has no row for would fail in the middle of a run.
  if (tokenizer.vocabulary_size() > files.config().vocabulary_size) {
    throw IoError(path, "tokenizer",
                  "has " + std::to_string(tokenizer.vocabulary_size()) +
                      " tokens, more than the model's vocabulary of " +
                      std::to_string(files.config().vocabulary_size));
  }
  return {.path = path, .files = std::move(files), .tokenizer = std::move(tokenizer)};
}

ChatTemplate open_chat_template(const ModelBundle& bundle) {
  const Tokenizer& tokenizer = bundle.tokenizer;
  if (tokenizer.chat_template().empty()) {
    throw IoError(bundle.path, "chat template",
                  "the model has none: use rows of prompt and completion, or of text");
  }
  const auto spelling = [&](std::optional<int32_t> id) {
    return id ? std::string(tokenizer.token(*id)) : std::string();
  };
  try {
    return ChatTemplate::parse(tokenizer.chat_template(), spelling(tokenizer.bos_id()),
                               spelling(tokenizer.eos_id()));
  } catch (const Error& error) {
    throw IoError(bundle.path, "chat template", error.what());
  }
}

}  // namespace flashloom
