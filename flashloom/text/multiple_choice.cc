#include "flashloom/text/multiple_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/text/data_reader.h"
#include "flashloom/text/jinja/value.h"
#include "flashloom/text/json_value.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "add_choices";

struct Pair {
  std::vector<int32_t> tokens;
  int64_t context = 0;  // of them, those of the question
};

Pair encode_pair(const Question& question, const std::string& choice, const Tokenizer& tokenizer) {
  std::string context = question.question;
  const size_t end = context.find_last_not_of(" \t\n\v\f\r");
  std::string continuation = " " + choice;
  if (const size_t kept = end == std::string::npos ? 0 : end + 1; kept < context.size()) {
    continuation = context.substr(kept) + continuation;
    context.resize(kept);
  }
  if (context.empty()) {
    const std::optional<int32_t> prefix =
        tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
    if (!prefix) {
      throw InvalidArgument(kOp, question.place,
                            "a question, or a tokenizer with a BOS or end-of-sequence token",
                            "neither");
    }
    Pair pair = {.tokens = {*prefix}, .context = 1};
    tokenizer.encode_append(pair.tokens, continuation, {.add_special_tokens = false});
    return pair;
  }
  return {.tokens = tokenizer.encode(context + continuation),
          .context = static_cast<int64_t>(tokenizer.encode(context).size())};
}

const jinja::Value& field(const jinja::Dict& row, std::string_view name) {
  const jinja::Value* value = row.find(name);
  if (value == nullptr) {
    throw Error(fmt::format("the field `{}` is missing", name));
  }
  return *value;
}

const std::string& text(const jinja::Value& value, std::string_view name) {
  if (value.string() == nullptr) {
    throw Error(fmt::format("`{}`: expected a string, got {}", name, value.type_name()));
  }
  return *value.string();
}

// An index, or the right choice itself.
int64_t answer_index(const jinja::Value& value, const std::vector<std::string>& choices) {
  if (value.string() != nullptr) {
    const auto found = std::find(choices.begin(), choices.end(), *value.string());
    if (found == choices.end()) {
      throw Error(fmt::format("`answer`: expected an index or one of the choices, got '{}'",
                              *value.string()));
    }
    return found - choices.begin();
  }
  if (!value.is_integer()) {
    throw Error(fmt::format("`answer`: expected an index or one of the choices, got {}",
                            value.type_name()));
  }
  const int64_t index = value.as_integer("answer");
  if (index < 0 || index >= static_cast<int64_t>(choices.size())) {
    throw Error(
        fmt::format("`answer`: expected an index from 0 to {}, got {}", choices.size() - 1, index));
  }
  return index;
}

Question parse_question(const jinja::Value& value) {
  if (value.dict() == nullptr) {
    throw Error(fmt::format("expected a JSON object, got {}", value.type_name()));
  }
  const jinja::Dict& row = *value.dict();
  Question question = {.question = text(field(row, "question"), "question")};
  const jinja::List* choices = field(row, "choices").list();
  if (choices == nullptr || choices->items.size() < 2) {
    throw Error("`choices`: expected a list of at least two strings");
  }
  for (size_t i = 0; i < choices->items.size(); ++i) {
    question.choices.push_back(text(choices->items[i], fmt::format("choices[{}]", i)));
  }
  question.answer = answer_index(field(row, "answer"), question.choices);
  return question;
}

double standard_error(double share, int64_t count) {
  return count < 2 ? 0 : std::sqrt(share * (1 - share) / static_cast<double>(count - 1));
}

// What the harness divides by: len() of a Python string.
double characters(const std::string& text) {
  return static_cast<double>(
      std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& file) {
  std::vector<Question> questions;
  JsonParser parser;
  read_json_lines(file, [&](std::string_view line, int64_t number) {
    questions.push_back(
        at_line(file, number, [&] { return parse_question(parser.parse_padded(line)); }));
    questions.back().place = fmt::format("{}: line {}", file.string(), number);
  });
  return questions;
}

void add_choices(TokenDocuments& documents, std::span<const Question> questions,
                 const Tokenizer& tokenizer, int64_t sequence_length) {
  for (const Question& question : questions) {
    for (const std::string& choice : question.choices) {
      const Pair pair = encode_pair(question, choice, tokenizer);
      std::span<const int32_t> tokens = pair.tokens;
      const auto size = static_cast<int64_t>(tokens.size());
      const int64_t predicted = size - pair.context;
      check(predicted > 0, kOp, question.place, "choices that add tokens to the question",
            fmt::format("'{}', which adds none", choice));
      check(predicted < sequence_length, kOp, question.place,
            fmt::format("choices of fewer than {} tokens", sequence_length),
            std::to_string(predicted));
      tokens = tokens.last(static_cast<size_t>(std::min(size, sequence_length)));
      std::vector<uint8_t> loss(tokens.size());
      std::fill(loss.end() - predicted, loss.end(), uint8_t{1});
      documents.add(tokens, loss);
    }
  }
}

ChoiceAccuracy choice_accuracy(std::span<const Question> questions,
                               std::span<const double> losses) {
  ChoiceAccuracy result = {.questions = static_cast<int64_t>(questions.size())};
  size_t next = 0;
  for (const Question& question : questions) {
    const size_t count = question.choices.size();
    check(next + count <= losses.size(), "choice_accuracy", "losses", "one for each choice",
          std::to_string(losses.size()));
    int64_t likeliest = 0, best = 0;
    std::vector<double> normalized(count);
    for (size_t i = 0; i < count; ++i) {
      normalized[i] = losses[next + i] / std::max(1.0, characters(question.choices[i]));
      likeliest = losses[next + i] < losses[next + static_cast<size_t>(likeliest)]
                      ? static_cast<int64_t>(i)
                      : likeliest;
      best = normalized[i] < normalized[static_cast<size_t>(best)] ? static_cast<int64_t>(i) : best;
    }
    result.accuracy += likeliest == question.answer ? 1 : 0;
    result.normalized += best == question.answer ? 1 : 0;
    next += count;
  }
  const auto count = static_cast<double>(std::max<size_t>(1, questions.size()));
  result.accuracy /= count;
  result.normalized /= count;
  result.accuracy_error = standard_error(result.accuracy, result.questions);
  result.normalized_error = standard_error(result.normalized, result.questions);
  return result;
}

}  // namespace flashloom
