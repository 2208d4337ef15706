#include "flashloom/text/supervised.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "flashloom/core/error.h"
#include "flashloom/text/json_value.h"
#include "flashloom/text/preview.h"
#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {
namespace {

using Ids = std::vector<int32_t>;

Tokenizer smollm2() {
  GgufVocabulary vocabulary = golden_vocabulary("smollm2");
  vocabulary.eos_id = 2;
  vocabulary.chat_template = golden_text("templates/smollm2.jinja");
  return Tokenizer::from_vocabulary(vocabulary);
}

// SmolLM2's tokens with another template; <|im_start|> is put before every text as BOS.
Tokenizer with_template(const std::string& source, bool add_bos = false) {
  GgufVocabulary vocabulary = golden_vocabulary("smollm2");
  vocabulary.bos_id = 1;
  vocabulary.eos_id = 2;
  vocabulary.add_bos = add_bos;
  vocabulary.chat_template = source;
  return Tokenizer::from_vocabulary(vocabulary);
}

DataRow row_of(std::string_view json) {
  DataRow row = parse_data_row(json);
  row.file = "rows.jsonl";
  row.line = 7;
  return row;
}

// Parts in turn: context, loss, context, loss, … each encoded by itself.
SupervisedExample joined(const Tokenizer& tokenizer, const std::vector<std::string>& parts) {
  SupervisedExample example;
  bool loss = false;
  for (const std::string& part : parts) {
    tokenizer.encode_append(example.tokens, part, {.add_special_tokens = false});
    example.loss.resize(example.tokens.size(), loss ? 1 : 0);
    loss = !loss;
  }
  return example;
}

void expect_parts(const Tokenizer& tokenizer, std::string_view json,
                  const std::vector<std::string>& parts) {
  const SupervisedExample actual = SupervisedEncoder(tokenizer).encode(row_of(json));
  const SupervisedExample expected = joined(tokenizer, parts);
  EXPECT_EQ(actual.tokens, expected.tokens) << json;
  EXPECT_EQ(actual.loss, expected.loss) << json;
}

std::string failure(const Tokenizer& tokenizer, std::string_view json) {
  try {
    (void)SupervisedEncoder(tokenizer).encode(row_of(json));
  } catch (const IoError& error) {
    return error.what();
  }
  return "encoded";
}

const std::string kSystem =
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n";

TEST(Supervised, AnAssistantsTurnBearsLossThroughItsEndOfTurn) {
  expect_parts(
      smollm2(),
      R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\n Yes"}]})",
      {kSystem + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "\n Yes<|im_end|>",
       "\n"});
}

TEST(Supervised, EveryAssistantsTurnBearsLoss) {
  expect_parts(
      smollm2(),
      R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "A"},
          {"role": "assistant", "content": "B"}, {"role": "user", "content": "C <|im_end|>"},
          {"role": "assistant", "content": "D"}, {"role": "assistant", "content": ""},
          {"role": "user", "content": "E"}]})",
      {"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n",
       "B<|im_end|>", "\n<|im_start|>user\nC <|im_end|><|im_end|>\n<|im_start|>assistant\n",
       "D<|im_end|>", "\n<|im_start|>assistant\n", "<|im_end|>",
       "\n<|im_start|>user\nE<|im_end|>\n"});
}

TEST(Supervised, ATemplateMayTrimTheContentAndWriteBos) {
  const Tokenizer tokenizer = with_template(
      "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}"
      "{{ eos_token if m.role == 'assistant' }}\n{% endfor %}"
      "{% if add_generation_prompt %}[assistant]{% endif %}\n",
      true);
  expect_parts(
      tokenizer,
      R"({"messages": [{"role": "user", "content": " q "}, {"role": "assistant", "content": " a "}]})",
      {"<|im_start|>[user]q\n[assistant]", "a<|im_end|>", "\n"});
}

TEST(Supervised, WithoutAnEndOfTurnTokenTheWholeTurnBearsLoss) {
  const Tokenizer tokenizer = with_template(
      "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
      "{% if add_generation_prompt %}assistant: {% endif %}");
  expect_parts(
      tokenizer,
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]})",
      {"user: q\nassistant: ", "a\n", "user: r\n"});
}

TEST(Supervised, FindsTurnsThatRenderDifferentlyLater) {
  // Qwen3 writes thoughts in the turns behind the last question alone.
  const Tokenizer tokenizer = with_template(golden_text("templates/qwen3.jinja"));
  expect_parts(
      tokenizer,
      R"({"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "<think>t</think>B"},
          {"role": "user", "content": "C"}, {"role": "assistant", "content": "D"}]})",
      {"<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n", "B<|im_end|>",
       "\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
       "<think>\n\n</think>\n\nD<|im_end|>", "\n"});
}

TEST(Supervised, AGenerationPromptMayHoldMoreThanTheHeader) {
  const Tokenizer tokenizer = with_template(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}");
  expect_parts(
      tokenizer,
      R"({"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]})",
      {"<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n", "B<|im_end|>", "\n"});
}

TEST(Supervised, AnAssistantMaySpeakFirst) {
  const Tokenizer tokenizer = with_template(golden_text("templates/qwen2.5.jinja"));
  expect_parts(
      tokenizer,
      R"({"messages": [{"role": "assistant", "content": "First"}, {"role": "user", "content": "x"}]})",
      {"<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
       "assistant.<|im_end|>\n<|im_start|>assistant\n",
       "First<|im_end|>", "\n<|im_start|>user\nx<|im_end|>\n"});
}

TEST(Supervised, PromptAndCompletionAreEncodedEachByItself) {
  const Tokenizer tokenizer = smollm2();
  expect_parts(tokenizer, R"({"prompt": "The s", "completion": "ame"})",
               {"The s", "ame<|im_end|>"});
  expect_parts(tokenizer, R"({"prompt": "p<|im_end|>", "completion": ""})",
               {"p<|im_end|>", "<|im_end|>"});
  expect_parts(tokenizer, R"({"prompt": "p", "completion": "c<|im_end|>"})", {"p", "c<|im_end|>"});
  EXPECT_NE(tokenizer.encode("in the"), joined(tokenizer, {"in t", "he"}).tokens);
}

TEST(Supervised, TextBearsLossThroughoutAndIsClosedOnce) {
  expect_parts(smollm2(), R"({"text": "Hello"})", {"", "Hello<|im_end|>"});
  expect_parts(smollm2(), R"({"text": "Hello<|im_end|>"})", {"", "Hello<|im_end|>"});
  expect_parts(smollm2(), R"({"text": "Hello<|im_end|>\n"})", {"", "Hello<|im_end|>\n<|im_end|>"});
}

TEST(Supervised, BosStandsOnce) {
  const Tokenizer tokenizer = with_template("", true);
  const SupervisedEncoder encoder(tokenizer);
  for (const char* json :
       {R"({"text": "a"})", R"({"text": "<|im_start|>a"})", R"({"prompt": "", "completion": "a"})",
        R"({"prompt": "<|im_start|>", "completion": "a"})"}) {
    EXPECT_EQ(encoder.encode(row_of(json)).tokens,
              tokenizer.encode("<|im_start|>a<|im_end|>", {.add_special_tokens = false}))
        << json;
  }
}

TEST(Supervised, SaysWhereARowCannotBeEncoded) {
  EXPECT_EQ(failure(with_template(""), R"({"messages": [{"role": "user", "content": "x"}]})"),
            "rows.jsonl: line 7: the model has no chat template, which rows of messages need");
  EXPECT_EQ(failure(smollm2(), R"({"messages": [{"role": "user"}]})"),
            "rows.jsonl: line 7: chat template, line 4: 'dict' has no attribute 'content'");
  EXPECT_EQ(
      failure(
          with_template("{% for m in messages %}{{ m.content }}{{ messages|length }}"
                        "{% endfor %}"),
          R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})"),
      "rows.jsonl: line 7: the assistant's turn in messages[1] cannot be found in what the "
      "chat template renders");
  GgufVocabulary vocabulary = golden_vocabulary("smollm2");
  vocabulary.eos_id.reset();
  EXPECT_EQ(failure(Tokenizer::from_vocabulary(vocabulary), R"({"text": "x"})"),
            "rows.jsonl: line 7: the tokenizer names no end-of-sequence token, which closes every "
            "text");
}

TEST(Preview, ShowsTokensAndMask) {
  const Tokenizer tokenizer = smollm2();
  const SupervisedExample example = joined(tokenizer, {"1\n2", "34<|im_end|>", "\t"});
  EXPECT_EQ(preview_example(tokenizer, example.tokens, example.loss),
            "7 tokens, 3 to learn\n  read   1│\\n│2\n  learn  3│4│<|im_end|>\n  read   \\t\n");
}

TEST(Preview, EscapesWhatCannotBeSeen) {
  EXPECT_EQ(escape_invisible("a\n\x1b[2J\x7f\xc3 é\u200b\u202e🙂\xff"),
            "a\\n\\x1b[2J\\x7f\\xc3 é\\u200b\\u202e🙂\\xff");
}

TEST(Preview, WrapsLongRuns) {
  const Tokenizer tokenizer = smollm2();
  const SupervisedExample example = joined(tokenizer, {std::string(200, '7')});
  const std::string text = preview_example(tokenizer, example.tokens, example.loss);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 6);
  EXPECT_EQ(std::count(text.begin(), text.end(), '7'), 200);
}

}  // namespace
}  // namespace flashloom
