#pragma once

#include "flashloom/io/model_files.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// The vocabulary of a GGUF file as the tokenizer takes it: io and text do not know each other.
/// `files` must have one.
GgufVocabulary gguf_vocabulary(const ModelFiles& files);

/// The reverse, for a file to be written. `tokenizer` is any.
StoredVocabulary stored_vocabulary(const Tokenizer& tokenizer);

}  // namespace flashloom
