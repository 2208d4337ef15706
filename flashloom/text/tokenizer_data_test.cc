// Golden files for the tests of this folder, and tests of directories.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {

std::string golden_text(const std::string& name) {
  std::ifstream stream(std::string(FLASHLOOM_SOURCE_DIR "/tests/golden/text/") + name,
                       std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream) {
    throw std::runtime_error("cannot read the golden file " + name);
  }
  return std::move(text).str();
}

nlohmann::json golden_json(const std::string& name) {
  return nlohmann::json::parse(golden_text(name));
}

Tokenizer golden_tokenizer(const std::string& kind) {
  const std::string name = "tokenizer_" + kind + ".json";
  return Tokenizer::from_json(golden_text(name), name);
}

GgufVocabulary golden_vocabulary(const std::string& kind) {
  const nlohmann::json source = golden_json("tokenizer_" + kind + ".json");
  const nlohmann::json& vocabulary = source["model"]["vocab"];
  GgufVocabulary gguf;
  gguf.file_name = kind + ".gguf";
  gguf.model = "gpt2";
  gguf.pre = kind == "gpt2"      ? "gpt-2"
             : kind == "smollm2" ? "smollm"
             : kind == "qwen2"   ? "qwen2"
                                 : "llama-bpe";
  gguf.tokens.resize(vocabulary.size());
  gguf.token_types.resize(vocabulary.size(), 1);
  for (const auto& [token, id] : vocabulary.items()) {
    gguf.tokens[id] = token;
  }
  for (const auto& added : source["added_tokens"]) {
    gguf.token_types[added["id"]] = 3;
  }
  for (const auto& merge : source["model"]["merges"]) {
    gguf.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  gguf.bos_id = 0;
  gguf.eos_id = 2;
  return gguf;
}

}  // namespace flashloom
