#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer.h"
#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::ThrowsMessage;

Tokenizer patched(const std::string& kind, const std::function<void(json&)>& patch) {
  json file = golden_json("tokenizer_" + kind + ".json");
  patch(file);
  return Tokenizer::from_json(file.dump(), "tokenizer.json");
}

TEST(TokenizerVocabulary, GivesTheSameIdsByWayOfGguf) {
  const std::vector<std::string> texts = golden_json("tokenizer_texts.json");
  const std::vector<std::pair<std::string, std::string>> kinds = {
      {"gpt2", "gpt-2"}, {"smollm2", "smollm"}, {"qwen2", "qwen2"}, {"llama3", "llama-bpe"}};
  for (const auto& [kind, pre] : kinds) {
    const Tokenizer tokenizer = golden_tokenizer(kind);
    const GgufVocabulary vocabulary = tokenizer.vocabulary();
    EXPECT_EQ(vocabulary.model, "gpt2");
    EXPECT_EQ(vocabulary.pre, pre);
    EXPECT_EQ(vocabulary.tokens.size(), static_cast<size_t>(tokenizer.vocabulary_size()));
    const Tokenizer again = Tokenizer::from_vocabulary(vocabulary);
    for (const std::string& text : texts) {
      ASSERT_EQ(again.encode(text), tokenizer.encode(text)) << kind << " " << json(text);
    }
    for (int32_t id = 0; id < tokenizer.vocabulary_size(); ++id) {
      EXPECT_EQ(again.is_special(id), tokenizer.is_special(id)) << kind << " " << id;
    }
    EXPECT_EQ(again.vocabulary().merges, vocabulary.merges);
  }
}

TEST(TokenizerVocabulary, TellsAddedTokensApartAndFillsHoles) {
  const Tokenizer tokenizer = patched("smollm2", [](json& file) {
    const int64_t size = file["model"]["vocab"].size();
    file["added_tokens"].push_back(
        {{"id", size + 2}, {"content", "<tool>"}, {"special", false}, {"normalized", false}});
  });
  const GgufVocabulary vocabulary = tokenizer.vocabulary();
  const size_t last = vocabulary.tokens.size() - 1;
  EXPECT_EQ(vocabulary.tokens[last], "<tool>");
  EXPECT_EQ(vocabulary.token_types[last], 4);
  EXPECT_EQ(vocabulary.tokens[last - 1], "[PAD" + std::to_string(last - 1) + "]");
  EXPECT_EQ(vocabulary.token_types[last - 1], 5);
  EXPECT_EQ(vocabulary.token_types[static_cast<size_t>(*tokenizer.token_id("<|im_end|>"))], 3);
  EXPECT_EQ(vocabulary.token_types[static_cast<size_t>(*tokenizer.token_id("a"))], 1);
  EXPECT_EQ(vocabulary.add_bos, false);
}

TEST(TokenizerVocabulary, RefusesWhatGgufCannotSay) {
  const Tokenizer other = patched("gpt2", [](json& file) {
    file["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"},
           {"pattern", {{"Regex", "\\d"}}},
           {"behavior", "Isolated"},
           {"invert", false}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  });
  EXPECT_THAT([&] { other.vocabulary(); },
              ThrowsMessage<IoError>(HasSubstr("pre_tokenizer: llama.cpp has no name")));
  const Tokenizer wrapped = patched("gpt2", [](json& file) {
    file["post_processor"] = {
        {"type", "TemplateProcessing"},
        {"single",
         {{{"SpecialToken", {{"id", "<|endoftext|>"}, {"type_id", 0}}}},
          {{"SpecialToken", {{"id", "<|endoftext|>"}, {"type_id", 0}}}},
          {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
        {"special_tokens",
         {{"<|endoftext|>",
           {{"id", "<|endoftext|>"}, {"ids", {0}}, {"tokens", {"<|endoftext|>"}}}}}}};
  });
  EXPECT_THAT([&] { wrapped.vocabulary(); },
              ThrowsMessage<IoError>(HasSubstr("puts the ids 0, 0 at a text's begin")));
}

}  // namespace
}  // namespace flashloom
