#include "flashloom/text/multiple_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string written(const std::string& text) {
  const std::string path = testing::TempDir() + "/questions.jsonl";
  std::ofstream(path) << text;
  return path;
}

std::string failure(const std::string& text) {
  const std::string path = written(text);
  try {
    read_questions(path);
  } catch (const IoError& error) {
    return std::string(error.what()).substr(path.size() + 2);
  }
  return "nothing thrown";
}

TEST(MultipleChoice, ReadsRowsWithIndicesAndChoicesAsAnswers) {
  const std::vector<Question> questions = read_questions(
      written(R"({"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1, "id": 7})"
              "\n\n"
              R"({"question": "", "choices": ["a", "b", "c"], "answer": "a"})"));
  ASSERT_EQ(questions.size(), 2U);
  EXPECT_EQ(questions[0].question, "2 + 2 =");
  EXPECT_THAT(questions[0].choices, ElementsAre("3", "4"));
  EXPECT_EQ(questions[0].answer, 1);
  EXPECT_EQ(questions[1].answer, 0);
  EXPECT_THAT(questions[1].place, HasSubstr("line 3"));
}

TEST(MultipleChoice, NamesWhatIsWrongWithARow) {
  EXPECT_EQ(failure(""), "the file holds no rows");
  EXPECT_EQ(failure("[]"), "line 1: expected a JSON object, got list");
  EXPECT_EQ(failure("{\"question\": \"a\""), "line 1: invalid JSON");
  EXPECT_EQ(failure(R"({"choices": ["a", "b"], "answer": 0})"),
            "line 1: the field `question` is missing");
  EXPECT_EQ(failure(R"({"question": "a", "choices": ["a"], "answer": 0})"),
            "line 1: `choices`: expected a list of at least two strings");
  EXPECT_EQ(failure(R"({"question": "a", "choices": ["a", 1], "answer": 0})"),
            "line 1: `choices[1]`: expected a string, got int");
  EXPECT_EQ(failure(R"({"question": "a", "choices": ["a", "b"], "answer": 2})"),
            "line 1: `answer`: expected an index from 0 to 1, got 2");
  EXPECT_EQ(failure(R"({"question": "a", "choices": ["a", "b"], "answer": "c"})"),
            "line 1: `answer`: expected an index or one of the choices, got 'c'");
  EXPECT_EQ(failure(R"({"question": "a", "choices": ["a", "b"], "answer": true})"),
            "line 1: `answer`: expected an index or one of the choices, got bool");
}

class ChoiceTokens : public testing::Test {
 protected:
  static TokenDocument only(const TokenDocuments& documents, int64_t index) {
    return documents[index];
  }

  std::string loss_text(const TokenDocument& document) const {
    std::vector<int32_t> ids;
    for (size_t t = 0; t < document.tokens.size(); ++t) {
      if (document.loss[t] != 0) {
        ids.push_back(document.tokens[t]);
      }
    }
    return tokenizer_.decode(ids);
  }

  const Tokenizer tokenizer_ = Tokenizer::from_json(
      [] {
        std::ifstream file(std::string(FLASHLOOM_SOURCE_DIR) +
                           "/tests/golden/text/tokenizer_smollm2.json");
        return std::string(std::istreambuf_iterator<char>(file), {});
      }(),
      "tokenizer_smollm2.json");
};

TEST_F(ChoiceTokens, OnlyTheChoiceBearsLossAndBlanksBelongToIt) {
  const std::vector<Question> questions = {
      {.question = "The sky is", .choices = {"blue", "a stone"}},
      {.question = "The sky is \n", .choices = {"blue", "a stone"}}};
  TokenDocuments documents;
  add_choices(documents, questions, tokenizer_, 64);
  ASSERT_EQ(documents.size(), 4);
  EXPECT_EQ(tokenizer_.decode(only(documents, 0).tokens), "The sky is blue");
  EXPECT_EQ(loss_text(only(documents, 0)), " blue");
  EXPECT_EQ(loss_text(only(documents, 1)), " a stone");
  EXPECT_EQ(tokenizer_.decode(only(documents, 3).tokens), "The sky is \n a stone");
  EXPECT_EQ(loss_text(only(documents, 3)), " \n a stone");
}

TEST_F(ChoiceTokens, TheBeginningOfALongQuestionIsCut) {
  std::string question = "begin";
  for (int i = 0; i < 40; ++i) {
    question += " and on";
  }
  TokenDocuments documents;
  const std::vector<Question> questions = {{.question = question, .choices = {"end", "go"}}};
  add_choices(documents, questions, tokenizer_, 12);
  EXPECT_EQ(only(documents, 0).tokens.size(), 12U);
  EXPECT_EQ(loss_text(only(documents, 0)), " end");
  EXPECT_THROW(add_choices(documents, questions, tokenizer_, 1), InvalidArgument);
}

TEST_F(ChoiceTokens, AnEmptyQuestionNeedsATokenToStartFrom) {
  TokenDocuments documents;
  const std::vector<Question> questions = {{.choices = {"a", "b"}, .place = "q.jsonl: line 1"}};
  EXPECT_THROW(add_choices(documents, questions, tokenizer_, 12), InvalidArgument);
}

TEST(ChoiceAccuracy, CountsTheLikeliestAndTheBestPerCharacter) {
  // Losses by hand. Question 1: the short wrong choice is likelier (2 < 3), the right one better
  // per character (3 / 6 < 2 / 1). Question 2: right both ways. Question 3: a tie, the first
  // counts. Question 4: two characters of three bytes each are two characters (4 / 2 < 3 / 1).
  const std::vector<Question> questions = {{.choices = {"x", "longer"}, .answer = 1},
                                           {.choices = {"aa", "bb"}, .answer = 0},
                                           {.choices = {"aa", "bb"}, .answer = 1},
                                           {.choices = {"\u20ac\u20ac", "x"}, .answer = 0}};
  const std::vector<double> losses = {2, 3, 1, 5, 4, 4, 4, 3};
  const ChoiceAccuracy result = choice_accuracy(questions, losses);
  EXPECT_EQ(result.questions, 4);
  EXPECT_DOUBLE_EQ(result.accuracy, 0.25);
  EXPECT_DOUBLE_EQ(result.normalized, 0.75);
  EXPECT_DOUBLE_EQ(result.accuracy_error, std::sqrt(0.25 * 0.75 / 3));
}

}  // namespace
}  // namespace flashloom
