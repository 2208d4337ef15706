#include "flashloom/train/report/sample_answers.h"

#include <algorithm>
#include <span>

#include "flashloom/core/memory_plan.h"
#include "flashloom/core/philox.h"
#include "flashloom/models/llama/llama_generator.h"
#include "flashloom/models/sampling/sampling.h"

namespace flashloom {
namespace {

// Where a document's answer begins; 0: it has none worth asking for.
size_t answer_begin(const TokenDocument& document) {
  const size_t size = document.tokens.size();
  size_t begin = 0;
  while (begin < size && document.loss[begin] == 0) {
    ++begin;
  }
  if (begin == size || size < 3) {
    return 0;
  }
  // A text: its first tokens, BOS among them, are a question that a reader can judge.
  constexpr size_t kBeginning = 32;
  return begin > 1 ? begin : std::min(kBeginning, size / 2);
}

}  // namespace

std::vector<SampleQuestion> sample_questions(const TokenDocuments& documents,
                                             const Tokenizer& tokenizer, int64_t count,
                                             int64_t answer_tokens, int64_t longest_question) {
  std::vector<SampleQuestion> questions;
  const int64_t size = documents.size();
  count = std::min(count, size);
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t i = k * size / count; i < (k + 1) * size / count; ++i) {
      const TokenDocument document = documents[i];
      const size_t begin = answer_begin(document);
      if (begin == 0 || static_cast<int64_t>(begin) > longest_question) {
        continue;
      }
      size_t end = begin;
      while (end < document.tokens.size() && document.loss[end] != 0 &&
             static_cast<int64_t>(end - begin) < answer_tokens) {
        ++end;
      }
      const auto question = document.tokens.first(begin);
      questions.push_back({.tokens = {question.begin(), question.end()},
                           .prompt = tokenizer.decode(question),
                           .expected = tokenizer.decode(document.tokens.subspan(begin, end - begin),
                                                        /*skip_special=*/true)});
      break;
    }
  }
  return questions;
}

std::vector<std::string> answer_questions(const LlamaModel& model, const Tokenizer& tokenizer,
                                          const std::vector<SampleQuestion>& questions,
                                          int64_t answer_tokens, int64_t memory_budget,
                                          const std::function<bool()>& stop) {
  size_t longest = 0;
  for (const SampleQuestion& question : questions) {
    longest = std::max(longest, question.tokens.size());
  }
  if (longest == 0) {
    return {};
  }
  MemoryPlan plan;
  LlamaGenerator generator(model, {.capacity = static_cast<int64_t>(longest) + answer_tokens},
                           plan);
  if (plan.total_bytes() > memory_budget) {
    return {};
  }
  const Arena arena(plan);
  generator.bind(arena);
  std::vector<std::string> answers;
  std::vector<int32_t> scratch;
  RandomSequence random(0, RandomStream::sampling);  // temperature 0 draws nothing
  for (const SampleQuestion& question : questions) {
    generator.truncate(0);
    ConstTensorView logits = generator.append(question.tokens);
    std::vector<int32_t> answer;
    while (static_cast<int64_t>(answer.size()) < answer_tokens) {
      if (stop && stop()) {
        return {};
      }
      const int32_t id = sample_token(logits, {.temperature = 0}, random, scratch);
      if (tokenizer.is_end(id)) {
        break;
      }
      answer.push_back(id);
      logits = generator.append(std::span(&id, 1));
    }
    answers.push_back(tokenizer.decode(answer, /*skip_special=*/true));
  }
  return answers;
}

}  // namespace flashloom
