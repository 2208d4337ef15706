#include "flashloom/train/report/sample_answers.h"

#include <gmock/gmock.h>

#include <iterator>
#include <limits>

#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/train/model_bundle.h"

namespace flashloom {
namespace {

constexpr int64_t kAnyMemory = std::numeric_limits<int64_t>::max();

class SampleAnswers : public testing::Test {
 protected:
  // A document that asks `question` and answers `answer`.
  void add(const std::string& question, const std::string& answer) {
    std::vector<int32_t> tokens = tokenizer_.encode(question);
    std::vector<uint8_t> loss(tokens.size(), 0);
    tokenizer_.encode_append(tokens, answer);
    loss.resize(tokens.size(), 1);
    documents_.add(tokens, loss);
  }

  const std::string golden_ = FLASHLOOM_SOURCE_DIR "/tests/golden/";
  const Tokenizer tokenizer_ = Tokenizer::from_json(
      read_for_test(golden_ + "text/tokenizer_smollm2.json"), "tokenizer_smollm2.json");
  TokenDocuments documents_;
};

TEST_F(SampleAnswers, AsksUpToTheFirstTokenThatBearsLoss) {
  for (int i = 0; i < 6; ++i) {
    add("What is number " + std::to_string(i) + "?", " It is the one, and no other.");
  }
  const auto questions = sample_questions(documents_, tokenizer_, 3, 1000);
  ASSERT_EQ(questions.size(), 3u);
  EXPECT_EQ(questions[0].prompt, "What is number 0?");
  EXPECT_EQ(questions[1].prompt, "What is number 2?");  // evenly spaced
  EXPECT_EQ(questions[2].prompt, "What is number 4?");
  EXPECT_EQ(questions[0].expected, " It is the one, and no other.");
  EXPECT_EQ(tokenizer_.decode(questions[0].tokens), questions[0].prompt);
  const auto cut = sample_questions(documents_, tokenizer_, 1, 2);
  EXPECT_EQ(tokenizer_.encode(cut[0].expected).size(), 2u);
}

TEST_F(SampleAnswers, AsksTheBeginningOfATextAndPassesOverWhatIsLong) {
  add("", "A text bears loss throughout, so its beginning is the question. The rest is read too.");
  const auto text = sample_questions(documents_, tokenizer_, 4, 1000);
  ASSERT_EQ(text.size(), 1u);  // not more than there are
  EXPECT_EQ(text[0].tokens.size(), std::min<size_t>(32, documents_[0].tokens.size() / 2));
  EXPECT_EQ(text[0].prompt + text[0].expected, tokenizer_.decode(documents_[0].tokens));
  EXPECT_TRUE(sample_questions(documents_, tokenizer_, 1, 1000, /*longest_question=*/3).empty());
  documents_.add(std::vector<int32_t>(9, 1), std::vector<uint8_t>(9, 0));  // nothing to learn
  EXPECT_EQ(sample_questions(documents_, tokenizer_, 2, 1000).size(), 1u);
}

TEST_F(SampleAnswers, AreTheModelsOwnAndLeaveItAsItWas) {
  const std::string path = golden_ + "models/smollm2";
  const ModelFiles files = ModelFiles::open(path);
  MemoryPlan plan;
  LlamaModel model(files.config(), {.max_tokens = 16}, plan);
  const Arena arena(plan);
  model.bind(arena);
  model.load(files);
  // The golden model knows few tokens: ids, not texts.
  const std::vector<SampleQuestion> questions = {
      {.tokens = {1, 2, 3}}, {.tokens = {5, 6}}, {.tokens = {1, 2, 3}}};
  const auto answers = answer_questions(model, tokenizer_, questions, 5, kAnyMemory, {});
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(answers[0], answers[2]);  // nothing of a question before is left in the cache
  EXPECT_NE(answers[0], answers[1]);
  EXPECT_TRUE(
      answer_questions(model, tokenizer_, questions, 5, /*memory_budget=*/1000, {}).empty());
  EXPECT_TRUE(
      answer_questions(model, tokenizer_, questions, 5, kAnyMemory, [] { return true; }).empty());
  EXPECT_TRUE(answer_questions(model, tokenizer_, {}, 5, kAnyMemory, {}).empty());
}

}  // namespace
}  // namespace flashloom
