#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "flashloom/io/event_file.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/text/token_documents.h"
#include "flashloom/text/tokenizer.h"
#include "flashloom/train/report/run_facts.h"

namespace flashloom {

/// What a run writes for those who look at it.
struct ReportOptions {
  int64_t samples = 0;         // questions of the data to answer before and after; 0: none
  int64_t sample_tokens = 48;  // of an answer, at most: a few lines
  bool tensorboard = false;    // event files in `OUTPUT/tensorboard`
  std::string program = {};    // name and version of the caller
  std::vector<std::string> data_files = {}, held_out_files = {};
  std::string data_rows = {}, held_out_rows = {};
};

/// What event files show of a step.
struct JournalStep {
  int64_t step = 0;
  double loss = 0, learning_rate = 0, gradient_norm = 0;
  double all_tokens_per_second = 0, real_tokens_per_second = 0, loss_tokens_per_second = 0;
  double utilisation = 0;
  int64_t memory_bytes = 0;
};

/// Keeps a run's facts and its event file while it trains.
class RunJournal {
 public:
  /// Writes the facts of a run that stands at `step`; from step 0 on what an earlier run left is
  /// replaced. Throws IoError, as every function here.
  RunJournal(std::string output, RunFacts facts, int64_t step, const ReportOptions& options);

  void stepped(const JournalStep& step);
  void evaluated(int64_t step, double loss, int64_t memory_bytes);

  /// Answers the sample questions of `documents`, before the first step or after the last. Without
  /// effect if their memory is more than `memory_budget`, or once `stop` says so.
  enum class When : uint8_t { before, after };
  void answer(When when, const LlamaModel& model, const Tokenizer& tokenizer,
              const TokenDocuments& documents, int64_t memory_budget,
              const std::function<bool()>& stop);

  /// "finished" or "stopped".
  void finish(const std::string& state);

 private:
  void write() { write_run_facts(output_, facts_); }

  std::string output_;
  RunFacts facts_;
  int64_t samples_, sample_tokens_;
  std::optional<EventFile> events_;
};

}  // namespace flashloom
