// Hostile and broken tokenizer files: an error that names file and place, never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <random>

#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

template <class Load>
std::string error_of(Load load) {
  try {
    static_cast<void>(load());
  } catch (const IoError& error) {
    return error.what();
  }
  return "no IoError";
}

std::string error_of_text(const std::string& text) {
  return error_of([&] { return Tokenizer::from_json(text, "bad.json"); });
}

/// The message after a change of a good tokenizer.json.
template <class Change>
std::string error_after(Change change) {
  json good = golden_json("tokenizer_options.json")["base"];
  change(good);
  return error_of_text(good.dump());
}

TEST(TokenizerJson, RefusesEveryTruncation) {
  const std::string text = golden_text("tokenizer_smollm2.json");
  const size_t end = text.find_last_of('}');
  for (size_t size = 0; size <= end; size += size < 300 ? 1 : 997) {
    const std::string error = error_of_text(text.substr(0, size));
    ASSERT_THAT(error, AllOf(HasSubstr("bad.json"), HasSubstr("not valid JSON"))) << size;
  }
  EXPECT_THAT(error_of_text(text.substr(0, end)), HasSubstr("bad.json: byte "));
}

TEST(TokenizerJson, SurvivesAnyChangedByte) {
  const std::string good = json(golden_json("tokenizer_options.json")["base"]).dump();
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string text = good;
    for (unsigned changes = 1 + random() % 3; changes > 0; --changes) {
      text[random() % text.size()] = static_cast<char>(random() % 256);
    }
    try {
      const Tokenizer tokenizer = Tokenizer::from_json(text, "bad.json");
      EXPECT_LT(tokenizer.encode("The quick\n 12 \xFF é中").size(), 40U);
    } catch (const IoError& error) {
      EXPECT_THAT(error.what(), HasSubstr("bad.json"));
      ++refused;
    }
  }
  EXPECT_GT(refused, 50);
}

TEST(TokenizerJson, RefusesDeepNesting) {
  EXPECT_THAT(error_of_text(std::string(200'000, '[')), HasSubstr("bad.json"));
  EXPECT_THAT(error_of_text(std::string(5000, '[') + std::string(5000, ']')),
              HasSubstr("not valid JSON"));
  std::string nested;
  for (int i = 0; i < 3000; ++i) {
    nested += R"({"a":)";
  }
  EXPECT_THAT(error_of_text(nested + "1" + std::string(3000, '}')), HasSubstr("not valid JSON"));
}

TEST(TokenizerJson, RefusesHugeNegativeAndDoubleIds) {
  const auto with_id = [](const json& id) {
    return error_after([&](json& j) { j["model"]["vocab"]["the"] = id; });
  };
  for (const json& id : {json(2'000'000'000), json(INT64_MAX), json(-1), json(100'000)}) {
    EXPECT_THAT(with_id(id),
                AllOf(HasSubstr("bad.json: model.vocab["), HasSubstr("expected 0 to")));
  }
  EXPECT_THAT(with_id(5), HasSubstr("id 5 is also that of"));
  EXPECT_THAT(with_id(UINT64_MAX), HasSubstr("model.vocab: 'the': expected an integer"));
  EXPECT_THAT(with_id(1.5), HasSubstr("got a number"));
  EXPECT_THAT(with_id("7"), HasSubstr("got a string"));
  EXPECT_THAT(with_id(nullptr), HasSubstr("got null"));
  EXPECT_THAT(error_after([](json& j) { j["added_tokens"][0]["id"] = 2'000'000'000; }),
              HasSubstr("added_tokens[0]"));
  EXPECT_THAT(error_after([](json& j) { j["added_tokens"][0]["id"] = 1; }),
              HasSubstr("added_tokens[0]: '<|endoftext|>' has id 1, but 0 in the vocabulary"));
  EXPECT_THAT(error_after([](json& j) { j["added_tokens"][0]["content"] = "new"; }),
              HasSubstr("id 0 is also that of '<|endoftext|>'"));
}

TEST(TokenizerJson, RefusesATokenThatStandsTwice) {
  std::string text = golden_json("tokenizer_options.json")["base"].dump();
  const std::string key = "\"vocab\":{";
  text.insert(text.find(key) + key.size(), "\"<|im_end|>\":900,");
  EXPECT_THAT(error_of_text(text), HasSubstr("the token '<|im_end|>' stands twice"));
}

TEST(TokenizerJson, RefusesMergesOfUnknownTokens) {
  const auto with_merge = [](const json& merge) {
    return error_after([&](json& j) { j["model"]["merges"][3] = merge; });
  };
  EXPECT_THAT(with_merge(json::array({"t", "nothing"})),
              HasSubstr("bad.json: model.merges[3]: 'nothing' is not in the vocabulary"));
  EXPECT_THAT(with_merge(json::array({"t", "z"})), HasSubstr("'tz' is not in the vocabulary"));
  for (const json& merge : {json("one"), json("a b c"), json::array({"a"}), json::array({1, 2}),
                            json(7), json(nullptr), json::object()}) {
    EXPECT_THAT(with_merge(merge), HasSubstr("model.merges[3]: expected \"left right\""));
  }
}

TEST(TokenizerJson, NamesWhatItDoesNotSupport) {
  const auto patched = [](const json& patch) {
    return error_after([&](json& j) { j.merge_patch(patch); });
  };
  EXPECT_THAT(patched({{"model", {{"type", "WordPiece"}}}}),
              HasSubstr("model.type: the model 'WordPiece' is not supported (BPE)"));
  EXPECT_THAT(patched({{"model", {{"dropout", 0.1}}}}), HasSubstr("model.dropout"));
  EXPECT_THAT(patched({{"model", {{"end_of_word_suffix", "</w>"}}}}), HasSubstr("'</w>'"));
  EXPECT_THAT(patched({{"model", {{"unk_token", "[UNK]"}}}}),
              HasSubstr("model.unk_token: '[UNK]' is not in the vocabulary"));
  EXPECT_THAT(patched({{"normalizer", {{"type", "Lowercase"}}}}),
              HasSubstr("normalizer: the normalizer 'Lowercase' is not supported"));
  EXPECT_THAT(patched({{"pre_tokenizer", {{"type", "Metaspace"}}}}),
              HasSubstr("the pre-tokenizer 'Metaspace' is not supported"));
  EXPECT_THAT(patched({{"pre_tokenizer", nullptr}}), HasSubstr("expected ByteLevel"));
  EXPECT_THAT(patched({{"decoder", {{"type", "WordPiece"}}}}), HasSubstr("decoder 'WordPiece'"));
  EXPECT_THAT(patched({{"post_processor", {{"type", "BertProcessing"}}}}),
              HasSubstr("post-processor 'BertProcessing'"));
  const json level = {{"type", "ByteLevel"}, {"use_regex", false}};
  const auto sequence = [&](const json& first, const json& second) {
    return patched({{"pre_tokenizer",
                     {{"type", "Sequence"}, {"pretokenizers", json::array({first, second})}}}});
  };
  EXPECT_THAT(sequence(level, {{"type", "Digits"}}), HasSubstr("'Digits' behind ByteLevel"));
  const auto split = [&](const char* pattern, const char* behavior) {
    return sequence({{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}},
                    level);
  };
  EXPECT_THAT(split("(", "Isolated"), HasSubstr("expected a regular expression, got ("));
  EXPECT_THAT(split("\\w+", "Isolated"), HasSubstr("\\w in the pattern"));
  EXPECT_THAT(split("a", "Sideways"), HasSubstr("the behavior 'Sideways'"));
}

TEST(TokenizerJson, NamesThePlaceOfAWrongType) {
  EXPECT_THAT(error_of_text("[]"), HasSubstr("bad.json: expected an object, got an array"));
  EXPECT_THAT(error_of_text("{}"), HasSubstr("'model' is missing"));
  EXPECT_THAT(error_after([](json& j) { j["model"]["vocab"] = json::array(); }),
              HasSubstr("model.vocab: expected an object, got an array"));
  EXPECT_THAT(error_after([](json& j) { j["model"]["merges"] = "x"; }),
              HasSubstr("model.merges: expected an array, got a string"));
  EXPECT_THAT(error_after([](json& j) { j["added_tokens"][1]["special"] = 1; }),
              HasSubstr("added_tokens[1].special: expected a boolean, got an integer"));
  EXPECT_THAT(error_after([](json& j) {
                j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", json::array()}};
              }),
              HasSubstr("the text is missing from the template"));
  EXPECT_THAT(error_after([](json& j) {
                j["post_processor"] = json::parse(
                    R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"B"}},)"
                    R"({"Sequence":{"id":"A"}}],"special_tokens":{"B":{"ids":[99999]}}})");
              }),
              HasSubstr("post_processor: id 99999 is not in the vocabulary"));
}

TEST(TokenizerFromGguf, NamesTheKeyAtFault) {
  const auto error = [](auto change) {
    GgufVocabulary vocabulary = golden_vocabulary("smollm2");
    change(vocabulary);
    return error_of([&] { return Tokenizer::from_vocabulary(vocabulary); });
  };
  EXPECT_THAT(error([](GgufVocabulary& v) { v.pre = "default"; }),
              AllOf(HasSubstr("smollm2.gguf: tokenizer.ggml.pre: the pre-tokenizer 'default'"),
                    HasSubstr("gpt-2, smollm"), HasSubstr("qwen2"), HasSubstr("llama-bpe")));
  EXPECT_THAT(error([](GgufVocabulary& v) { v.model = "llama"; }),
              HasSubstr("tokenizer.ggml.model: the model 'llama' is not supported"));
  EXPECT_THAT(error([](GgufVocabulary& v) { v.tokens.clear(); }), HasSubstr("found none"));
  EXPECT_THAT(error([](GgufVocabulary& v) { v.token_types.pop_back(); }),
              HasSubstr("tokenizer.ggml.token_type"));
  EXPECT_THAT(error([](GgufVocabulary& v) { v.eos_id = 4'000'000'000; }),
              HasSubstr("tokenizer.ggml.eos_token_id: id 4000000000"));
  EXPECT_THAT(error([](GgufVocabulary& v) { v.bos_id = -1; }), HasSubstr("bos_token_id: id -1"));
  EXPECT_THAT(error([](GgufVocabulary& v) { v.tokens[700] = "\xFF"; }),
              HasSubstr("tokenizer.ggml.tokens[700]: a token that is not UTF-8"));
  EXPECT_THAT(error([](GgufVocabulary& v) { v.tokens[700] = v.tokens[5]; }),
              HasSubstr("stands twice"));
  for (const char* merge : {"", "alone", " ", "a "}) {
    EXPECT_THAT(error([&](GgufVocabulary& v) { v.merges[2] = merge; }),
                HasSubstr("tokenizer.ggml.merges[2]: expected 'left right'"));
  }
  EXPECT_THAT(error([](GgufVocabulary& v) { v.merges[2] = "zz zz"; }),
              HasSubstr("tokenizer.ggml.merges[2]: 'zz' is not in the vocabulary"));
}

/// Text without a space is one word. Its square is 10^11: a quadratic step would take minutes, and
/// the sanitizers cost a factor of ten at most.
TEST(Tokenizer, IsNotQuadraticInTextWithoutASpace) {
  constexpr size_t kLength = 300'000;
  std::mt19937 random(1);
  std::string letters(kLength, 'a');
  for (char& letter : letters) {
    letter = static_cast<char>('a' + random() % 26);
  }
  std::string marks;  // in the wrong order, so that NFC must sort them
  std::string cjk;
  while (marks.size() < kLength) {
    marks += "\u0316\u0301\u0323\u0300";
    cjk += "日本語的中文";
  }
  for (const char* kind : {"smollm2", "qwen2", "llama3"}) {
    const Tokenizer tokenizer = golden_tokenizer(kind);
    for (const std::string& text : {std::string(kLength, 'a'), letters, marks, cjk,
                                    std::string(kLength, '7'), std::string(kLength, ' ')}) {
      const std::clock_t start = std::clock();
      const std::vector<int32_t> ids = tokenizer.encode(text, {.add_special_tokens = false});
      const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      EXPECT_LT(seconds, 20);
      if (text != marks) {
        EXPECT_EQ(tokenizer.decode(ids), text);
      }
    }
  }
}

}  // namespace
}  // namespace flashloom
