#pragma once

#include <string>

#include "flashloom/io/model_files.h"
#include "flashloom/text/chat_template.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// MODEL as jobs need it: weights and config, tokenizer.
struct ModelBundle {
  std::string path;
  ModelFiles files;
  Tokenizer tokenizer;
};

/// Opens a Hugging Face directory or a GGUF file. Throws IoError.
ModelBundle open_model(const std::string& path);

/// The model's chat template. Throws IoError if it has none, or one beyond the subset of Jinja that
/// is understood; jobs without conversations never ask.
ChatTemplate open_chat_template(const ModelBundle& bundle);

/// Just the tokenizer, without touching the weights of a Hugging Face directory.
Tokenizer open_tokenizer(const std::string& path);

}  // namespace flashloom
