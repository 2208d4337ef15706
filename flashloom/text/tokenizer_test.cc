// Ids and texts against Hugging Face `tokenizers`, through the files that
// tools/make_tokenizer_golden.py writes.
#include "flashloom/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

class GoldenTokenizer : public testing::TestWithParam<const char*> {
 protected:
  GoldenTokenizer()
      : tokenizer_(golden_tokenizer(GetParam())),
        texts_(golden_json("tokenizer_texts.json")),
        golden_(golden_json(std::string("tokenizer_") + GetParam() + "_ids.json")) {}

  Tokenizer tokenizer_;
  std::vector<std::string> texts_;
  json golden_;
};

constexpr EncodeOptions kTextOnly{.add_special_tokens = false};

TEST_P(GoldenTokenizer, GivesTheSameIds) {
  ASSERT_EQ(texts_.size(), golden_["ids"].size());
  ASSERT_GT(texts_.size(), 400U);
  for (size_t i = 0; i < texts_.size(); ++i) {
    EXPECT_EQ(tokenizer_.encode(texts_[i], kTextOnly), golden_["ids"][i].get<Ids>())
        << json(texts_[i]);
  }
}

TEST_P(GoldenTokenizer, ReadsSpecialTokensAsTextWhenAsked) {
  const json& different = golden_["ids_special_as_text"];
  ASSERT_GT(different.size(), 10U);
  for (size_t i = 0; i < texts_.size(); ++i) {
    const auto found = different.find(std::to_string(i));
    const json& expected = found == different.end() ? golden_["ids"][i] : *found;
    EXPECT_EQ(
        tokenizer_.encode(texts_[i], {.add_special_tokens = false, .parse_special_tokens = false}),
        expected.get<Ids>())
        << json(texts_[i]);
  }
}

TEST_P(GoldenTokenizer, PutsTheTemplateAroundTheText) {
  Ids expected = golden_["prefix"];
  const Ids text = tokenizer_.encode("two words", kTextOnly);
  const Ids suffix = golden_["suffix"];
  expected.insert(expected.end(), text.begin(), text.end());
  expected.insert(expected.end(), suffix.begin(), suffix.end());
  EXPECT_EQ(tokenizer_.encode("two words"), expected);
}

TEST_P(GoldenTokenizer, DecodesToTheSameText) {
  for (size_t i = 0; i < texts_.size(); ++i) {
    const Ids ids = golden_["ids"][i];
    const std::string key = std::to_string(i);
    const std::string expected = golden_["decoded"].value(key, texts_[i]);
    EXPECT_EQ(tokenizer_.decode(ids), expected);
    EXPECT_EQ(tokenizer_.decode(ids, true),
              golden_["decoded_without_special"].value(key, expected));
  }
}

TEST_P(GoldenTokenizer, DecodesPartsOfCharactersToTheSameText) {
  for (size_t i = 0; i < golden_["loose_ids"].size(); ++i) {
    EXPECT_EQ(tokenizer_.decode(golden_["loose_ids"][i].get<Ids>()),
              golden_["loose_text"][i].get<std::string>());
  }
}

TEST_P(GoldenTokenizer, StreamsTheSameTextInWholeCharacters) {
  std::vector<Ids> streams = golden_["ids"];
  for (const json& ids : golden_["loose_ids"]) {
    streams.push_back(ids);
  }
  for (const Ids& ids : streams) {
    StreamDecoder decoder(tokenizer_);
    std::string whole;
    for (const int32_t id : ids) {
      const std::string part = decoder.push(id);
      EXPECT_NO_THROW(static_cast<void>(json(part).dump()));  // dump refuses text that is not UTF-8
      whole += part;
    }
    whole += decoder.finish();
    EXPECT_EQ(whole, tokenizer_.decode(ids));
  }
}

TEST_P(GoldenTokenizer, GivesTheSameIdsFromSeveralThreads) {
  std::vector<std::vector<Ids>> found(4);
  std::vector<std::thread> threads;
  for (auto& ids : found) {
    threads.emplace_back([this, &ids] {
      for (const std::string& text : texts_) {
        ids.push_back(tokenizer_.encode(text, kTextOnly));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const auto& ids : found) {
    EXPECT_EQ(json(ids), golden_["ids"]);
  }
}

TEST_P(GoldenTokenizer, GivesTheSameIdsFromGgufKeys) {
  const Tokenizer tokenizer = Tokenizer::from_vocabulary(golden_vocabulary(GetParam()));
  ASSERT_EQ(tokenizer.vocabulary_size(), tokenizer_.vocabulary_size());
  for (const std::string& text : texts_) {
    EXPECT_EQ(tokenizer.encode(text), tokenizer_.encode(text)) << json(text);
  }
}

TEST_P(GoldenTokenizer, WritesAGgufVocabularyAsATokenizerJsonWithTheSameIds) {
  GgufVocabulary vocabulary = golden_vocabulary(GetParam());
  vocabulary.chat_template = "{{ messages }}";
  const Tokenizer tokenizer = Tokenizer::from_vocabulary(vocabulary);
  const auto files = tokenizer.files();
  ASSERT_THAT(files, testing::Contains(testing::Pair("chat_template.jinja", "{{ messages }}")));
  ASSERT_EQ(files[0].first, "tokenizer.json");
  const Tokenizer again = Tokenizer::from_json(files[0].second, "written");
  for (const std::string& text : texts_) {
    EXPECT_EQ(again.encode(text), tokenizer_.encode(text)) << json(text);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, GoldenTokenizer,
                         testing::Values("gpt2", "smollm2", "qwen2", "llama3"),
                         [](const auto& kind) { return std::string(kind.param); });

TEST(TokenizerOptions, GiveTheSameIds) {
  const json golden = golden_json("tokenizer_options.json");
  ASSERT_GT(golden["cases"].size(), 30U);
  for (const json& option : golden["cases"]) {
    json patched = golden["base"];
    patched.merge_patch(option["patch"]);
    const Tokenizer tokenizer = Tokenizer::from_json(patched.dump(), "patched");
    for (size_t i = 0; i < golden["texts"].size(); ++i) {
      EXPECT_EQ(tokenizer.encode(golden["texts"][i].get<std::string>()),
                option["ids"][i].get<Ids>())
          << golden["texts"][i] << " with " << option["patch"].dump().substr(0, 600);
    }
  }
}

TEST(Tokenizer, ReadsTextThatIsNotUtf8AsReplacementCharacters) {
  const Tokenizer tokenizer = golden_tokenizer("gpt2");
  // Python: bytes.decode("utf-8", errors="replace")
  const std::pair<std::string, std::string> cases[] = {
      {"a\x80z", "a\uFFFDz"},           {"\xC3", "\uFFFD"},
      {"\xC0\xAF", "\uFFFD\uFFFD"},     {"\xE4\xBD", "\uFFFD"},
      {"\xE4\xBDx", "\uFFFDx"},         {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xF0\x9F\x98", "\uFFFD"},       {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xFFok\xFE", "\uFFFDok\uFFFD"},
  };
  for (const auto& [bytes, text] : cases) {
    EXPECT_EQ(tokenizer.encode(bytes), tokenizer.encode(text));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(bytes)), text);
  }
}

TEST(Tokenizer, NamesTokensBothWays) {
  const Tokenizer tokenizer = golden_tokenizer("smollm2");
  const int32_t id = tokenizer.token_id("<|im_end|>").value();
  EXPECT_EQ(tokenizer.token(id), "<|im_end|>");
  EXPECT_TRUE(tokenizer.is_special(id));
  const int32_t word = tokenizer.token_id("Ġthe").value();
  EXPECT_EQ(tokenizer.token_bytes(word), " the");
  EXPECT_FALSE(tokenizer.is_special(word));
  EXPECT_FALSE(tokenizer.token_id("no such token"));
  for (const int32_t outside : {-1, tokenizer.vocabulary_size(), INT32_MAX}) {
    EXPECT_EQ(tokenizer.token(outside), "");
    EXPECT_EQ(tokenizer.decode(Ids{outside}), "");
    EXPECT_FALSE(tokenizer.is_special(outside));
  }
}

TEST(Tokenizer, DecodesWhatItEncodes) {
  const Tokenizer tokenizer = golden_tokenizer("llama3");
  std::string text;
  for (uint32_t c = 1; c < 0x3000; ++c) {
    text += json::parse("\"\\u" +
                        [c] {
                          std::ostringstream hex;
                          hex.fill('0');
                          hex.width(4);
                          hex << std::hex << c;
                          return hex.str();
                        }() +
                        "\"")
                .get<std::string>();
  }
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, kTextOnly)), text);
}

}  // namespace
}  // namespace flashloom
