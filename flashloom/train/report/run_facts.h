#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/memory_plan.h"
#include "flashloom/text/token_documents.h"

namespace flashloom {

/// A side of a run's data, as a report shows it.
struct DataFacts {
  std::vector<std::string> files;  // as they were named; empty: not known
  std::string rows;                // what became of them, in words
  int64_t documents = 0, tokens = 0, loss_tokens = 0;
  int64_t shortest = 0, median = 0, longest = 0;  // tokens of a document
  std::vector<int64_t> lengths;  // documents of [i w, (i + 1) w) tokens, w = RunFacts::length_bin
};

/// A question of the run's data, answered before the first step and after the last.
struct SampleAnswer {
  std::string prompt;    // with its special tokens, as the model sees it
  std::string expected;  // the data's own answer, or its beginning
  std::optional<std::string> before, after;
};

/// What a report tells of a run beside its settings (`run.json`) and metrics (`metrics.jsonl`):
/// `OUTPUT/facts.json`, written when a run starts or goes on, and when it ends. Nothing of it
/// decides the weights.
struct RunFacts {
  std::string program;           // that trained, with its version
  std::string started, updated;  // "2026-11-27T12:00:00Z": of the first process, of this file
  std::string state;             // "running", "stopped", "finished", "failed"
  std::string failure;           // why, if it failed

  std::string model_path, architecture;
  int64_t parameters = 0, trained_parameters = 0;
  int64_t layers = 0, hidden_size = 0, vocabulary_size = 0;

  DataFacts train;
  std::optional<DataFacts> held_out;
  int64_t length_bin = 1;  // tokens, of DataFacts::lengths

  int64_t steps = 0;
  /// Choices that do not decide the weights, by name.
  std::vector<std::pair<std::string, std::string>> choices;

  std::vector<MemoryPlan::Row> memory;
  int64_t planned_bytes = 0, budget_bytes = 0;
  int64_t peak_bytes = 0;  // the most that was measured after a step or an evaluation

  std::string processor;
  int64_t threads = 0;

  std::vector<SampleAnswer> samples;
  double sample_seconds = 0;
};

/// Width of a histogram of lengths up to `longest`: at most 32 bars, of 1, 2 or 5 times a power of
/// ten tokens.
int64_t length_bin(int64_t longest);

/// Without files and rows, which the documents do not know.
DataFacts data_facts(const TokenDocuments& documents, int64_t length_bin);

/// The machine's name for its processor; empty where the system does not say.
std::string processor_name();

/// Seconds since 1970, and the same as `RunFacts::started` has it.
double wall_time();
std::string format_time(double wall_time);

/// Sets `updated`. Throws IoError.
void write_run_facts(const std::string& output, RunFacts& facts);

/// From what an earlier process of the run wrote: when it started, its answers, and what they took.
/// A file that is missing or damaged tells nothing.
void recall_run_facts(const std::string& output, RunFacts& facts);

/// Notes in the run's facts, if there are any, that it ended with an error. Never throws: it is
/// called on the way out.
void record_failure(const std::string& output, const std::string& what) noexcept;

}  // namespace flashloom
