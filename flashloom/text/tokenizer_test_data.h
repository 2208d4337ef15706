#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// A file of tests/golden/text.
std::string golden_text(const std::string& name);
nlohmann::json golden_json(const std::string& name);

/// tokenizer_<kind>.json
Tokenizer golden_tokenizer(const std::string& kind);

/// The same tokenizer as the keys of a GGUF file would tell it.
GgufVocabulary golden_vocabulary(const std::string& kind);

}  // namespace flashloom
