#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

/// A directory with the small SmolLM2-like tokenizer (0 <|endoftext|>, 1 <|im_start|>,
/// 2 <|im_end|>).
class TokenizerDirectory : public testing::Test {
 protected:
  TokenizerDirectory() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) /
              (std::string("flashloom_tokenizer_") + test->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    write("tokenizer.json", golden_text("tokenizer_smollm2.json"));
  }

  ~TokenizerDirectory() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }

  void write(const std::string& name, const json& value) { write(name, value.dump()); }

  Tokenizer load() const { return Tokenizer::from_directory(folder_); }

  std::string error() const {
    try {
      load();
    } catch (const IoError& error) {
      return error.what();
    }
    return "no IoError";
  }

  std::filesystem::path folder_;
};

TEST_F(TokenizerDirectory, NeedsNothingButTokenizerJson) {
  const Tokenizer tokenizer = load();
  EXPECT_FALSE(tokenizer.eos_id());
  EXPECT_TRUE(tokenizer.end_ids().empty());
  EXPECT_EQ(tokenizer.chat_template(), "");
  std::filesystem::remove(folder_ / "tokenizer.json");
  EXPECT_THAT(error(), HasSubstr("tokenizer.json: no such file"));
}

TEST_F(TokenizerDirectory, TakesEndTokensFromEveryFileInTheirOrder) {
  write("config.json", {{"eos_token_id", 0}});
  EXPECT_THAT(load().end_ids(), ElementsAre(0));
  write("generation_config.json", {{"eos_token_id", {1, 0}}});
  EXPECT_THAT(load().end_ids(), ElementsAre(1, 0));
  EXPECT_EQ(load().eos_id(), 1);
  write("tokenizer_config.json", {{"eos_token", "<|im_end|>"}});
  EXPECT_THAT(load().end_ids(), ElementsAre(2, 1, 0));
  EXPECT_EQ(load().eos_id(), 2);
  EXPECT_TRUE(load().is_end(0));
  EXPECT_FALSE(load().is_end(3));
}

TEST_F(TokenizerDirectory, ReadsSpecialTokensInEveryForm) {
  write("tokenizer_config.json", {{"bos_token", {{"content", "<|im_start|>"}, {"lstrip", false}}},
                                  {"pad_token", "<|im_end|>"},
                                  {"unk_token", nullptr}});
  write("special_tokens_map.json",
        {{"eos_token", "<|im_end|>"}, {"unk_token", {{"content", "<|endoftext|>"}}}});
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.padding_id(), 2);
  EXPECT_EQ(tokenizer.unknown_id(), 0);
  EXPECT_TRUE(tokenizer.prefix_ids().empty());
}

TEST_F(TokenizerDirectory, AddsBosWhenTheConfigSaysSo) {
  write("tokenizer_config.json", {{"bos_token", "<|im_start|>"},
                                  {"eos_token", "<|im_end|>"},
                                  {"add_bos_token", true},
                                  {"add_eos_token", true}});
  const std::vector<int32_t> ids = load().encode("a");
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(ids.back(), 2);
  EXPECT_EQ(ids.size(), 3U);
}

TEST_F(TokenizerDirectory, PrefersTheTemplateFileOfTransformers5) {
  write("tokenizer_config.json", {{"chat_template", "from config"}});
  EXPECT_EQ(load().chat_template(), "from config");
  write("tokenizer_config.json",
        {{"chat_template", json::array({{{"name", "tool_use"}, {"template", "tools"}},
                                        {{"name", "default"}, {"template", "the default"}}})}});
  EXPECT_EQ(load().chat_template(), "the default");
  write("chat_template.jinja", std::string("from file\n"));
  EXPECT_EQ(load().chat_template(), "from file\n");
}

TEST_F(TokenizerDirectory, GivesItsFilesBackAsTheyWere) {
  const std::string config = "{ \"eos_token\" : \"<|im_end|>\" }\n";
  write("tokenizer_config.json", config);
  write("chat_template.jinja", std::string("x"));
  EXPECT_THAT(load().files(),
              ElementsAre(testing::Pair("tokenizer.json", golden_text("tokenizer_smollm2.json")),
                          testing::Pair("tokenizer_config.json", config),
                          testing::Pair("chat_template.jinja", "x")));
}

TEST_F(TokenizerDirectory, NamesTheFileAndKeyAtFault) {
  write("tokenizer_config.json", {{"eos_token", "</s>"}});
  EXPECT_THAT(error(), HasSubstr("tokenizer_config.json: eos_token: the token '</s>' is not in"));
  write("tokenizer_config.json", {{"eos_token", 7}});
  EXPECT_THAT(error(), HasSubstr("eos_token: expected a token, got number"));
  write("tokenizer_config.json", std::string("{\"eos_token\": "));
  EXPECT_THAT(error(), HasSubstr("tokenizer_config.json: byte"));
  write("tokenizer_config.json", json::array());
  EXPECT_THAT(error(), HasSubstr("expected an object, got array"));
  write("tokenizer_config.json", json::object());
  for (const json& id : {json(-1), json(1'000'000), json(UINT64_MAX)}) {
    write("generation_config.json", {{"eos_token_id", id}});
    EXPECT_THAT(error(), HasSubstr("generation_config.json: eos_token_id: id " + id.dump()));
  }
  write("generation_config.json", {{"eos_token_id", "2"}});
  EXPECT_THAT(error(), HasSubstr("expected an id or a list of ids, got string"));
}

TEST(TokenizerFromGguf, KnowsItsSpecialTokens) {
  GgufVocabulary vocabulary = golden_vocabulary("llama3");
  vocabulary.padding_id = 2;
  vocabulary.unknown_id = 0;
  vocabulary.chat_template = "t";
  const Tokenizer tokenizer = Tokenizer::from_vocabulary(vocabulary);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_THAT(tokenizer.end_ids(), ElementsAre(2, 0));  // <|endoftext|> by its name
  EXPECT_EQ(tokenizer.padding_id(), 2);
  EXPECT_EQ(tokenizer.unknown_id(), 0);
  EXPECT_THAT(tokenizer.prefix_ids(), ElementsAre(0));  // llama-bpe adds BOS unless told otherwise
  vocabulary.add_bos = false;
  vocabulary.add_eos = true;
  const Tokenizer other = Tokenizer::from_vocabulary(vocabulary);
  EXPECT_TRUE(other.prefix_ids().empty());
  EXPECT_THAT(other.suffix_ids(), ElementsAre(2));
  const json config = json::parse(other.files()[1].second);
  EXPECT_EQ(config["eos_token"], "<|im_end|>");
  EXPECT_EQ(config["chat_template"], "t");
}

}  // namespace
}  // namespace flashloom
