#include "flashloom/train/report/run_journal.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <utility>

#include "flashloom/train/report/sample_answers.h"

namespace flashloom {
namespace {

std::string events_of(const std::string& output) {
  return output + "/tensorboard";
}

}  // namespace

RunJournal::RunJournal(std::string output, RunFacts facts, int64_t step,
                       const ReportOptions& options)
    : output_(std::move(output)),
      facts_(std::move(facts)),
      samples_(options.samples),
      sample_tokens_(options.sample_tokens) {
  facts_.state = "running";
  facts_.started = format_time(wall_time());
  if (step > 0) {
    recall_run_facts(output_, facts_);
  } else {
    std::filesystem::remove_all(events_of(output_));
  }
  if (options.tensorboard) {
    events_.emplace(events_of(output_), step + 1, wall_time());
  }
  write();
}

void RunJournal::stepped(const JournalStep& step) {
  facts_.peak_bytes = std::max(facts_.peak_bytes, step.memory_bytes);
  if (events_) {
    events_->add(step.step, wall_time(),
                 {{"loss/train", step.loss},
                  {"optimizer/learning_rate", step.learning_rate},
                  {"optimizer/gradient_norm", step.gradient_norm},
                  {"tokens_per_second/all", step.all_tokens_per_second},
                  {"tokens_per_second/real", step.real_tokens_per_second},
                  {"tokens_per_second/loss_bearing", step.loss_tokens_per_second},
                  {"machine/mfu", step.utilisation},
                  {"machine/memory_bytes", static_cast<double>(step.memory_bytes)}});
  }
}

void RunJournal::evaluated(int64_t step, double loss, int64_t memory_bytes) {
  facts_.peak_bytes = std::max(facts_.peak_bytes, memory_bytes);
  if (events_) {
    events_->add(step, wall_time(), {{"loss/held_out", loss}});
  }
}

void RunJournal::answer(When when, const LlamaModel& model, const Tokenizer& tokenizer,
                        const TokenDocuments& documents, int64_t memory_budget,
                        const std::function<bool()>& stop) {
  if (samples_ == 0) {
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  const auto questions = sample_questions(documents, tokenizer, samples_, sample_tokens_);
  const std::vector<std::string> answers =
      answer_questions(model, tokenizer, questions, sample_tokens_, memory_budget, stop);
  if (answers.empty()) {
    return;
  }
  std::vector<SampleAnswer> samples;
  for (size_t i = 0; i < questions.size(); ++i) {
    SampleAnswer sample = {.prompt = questions[i].prompt, .expected = questions[i].expected};
    const auto known =
        std::find_if(facts_.samples.begin(), facts_.samples.end(),
                     [&](const SampleAnswer& other) { return other.prompt == sample.prompt; });
    if (known != facts_.samples.end()) {
      sample.before = known->before;
    }
    (when == When::before ? sample.before : sample.after) = answers[i];
    samples.push_back(std::move(sample));
  }
  facts_.samples = std::move(samples);
  facts_.sample_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  write();
}

void RunJournal::finish(const std::string& state) {
  facts_.state = state;
  write();
}

}  // namespace flashloom
