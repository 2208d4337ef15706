#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/memory_flags.h"
#include "cli/terminal.h"
#include "cli/training_data.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/json/json.h"
#include "flashloom/train/model_bundle.h"
#include "flashloom/train/prepared_data.h"

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  std::string output;
  DataFlags data;
  int64_t threads = 0;
  bool json = false;
};

int run(const Options& options) {
  validate(options.data);
  require_at_least("--threads", static_cast<double>(options.threads), 0);
  if (!prepared_directory(options.data).empty()) {
    throw UsageError("--data: expected files of rows, text or tokens, got a set that is prepared");
  }
  set_thread_count(static_cast<int>(options.threads));
  const auto start = std::chrono::steady_clock::now();
  const SupervisedEncoder encoder(open_tokenizer(options.model));
  make_directory(options.output);
  const TrainingData data = load_training_data(options.data, encoder, options.output);
  tell(data);
  PreparedSettings settings = {.sequence_length = data.options.sequence_length,
                               .long_rows = data.options.long_rows,
                               .held_out = data.options.held_out,
                               .files = data.files};
  write_prepared(options.output, settings, data.split, encoder.tokenizer());
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  note(fmt::format("prepared {} in {}; train with --data {} --seq-len {}", options.output,
                   format_duration(seconds), options.output, settings.sequence_length));
  if (options.json) {
    const SupervisedSplit& split = data.split;
    const Json json = {{"output", options.output},
                       {"documents", split.train.documents.size()},
                       {"tokens", split.train.documents.total_tokens()},
                       {"loss_tokens", split.train.documents.total_loss_tokens()},
                       {"held_out_documents", split.held_out.documents.size()},
                       {"seconds", seconds}};
    fmt::print("{}\n", json.dump());
  }
  return kSuccess;
}

}  // namespace

Command prepare_command() {
  auto o = std::make_shared<Options>();
  return {.name = "prepare",
          .summary = "Tokenize a data set once, to train on it many times",
          .flags = {{"--model", &o->model,
                     "Hugging Face directory or GGUF file: its tokenizer and chat template", true},
                    {"--data", &o->data.data,
                     "JSONL files, text, or .bin files of tokens; FILE:2 is drawn twice an epoch",
                     true},
                    {"--eval-data", &o->data.eval_data, "held-out files"},
                    {"--output", &o->output, "directory of the set", true},
                    {"--seq-len", &o->data.sequence_length, "tokens of the longest example"},
                    {"--long",
                     &o->data.long_rows,
                     "what becomes of rows longer than --seq-len",
                     false,
                     {"cut", "split", "drop", "refuse"}},
                    {"--held-out", &o->data.held_out,
                     "share of the rows to hold out, chosen by their content"},
                    {"--threads", &o->threads, "0: all cores; results do not depend on it"},
                    {"--json", &o->json, "one JSON object on standard output"}},
          .run = [o] { return run(*o); },
          .footer =
              "Example: flashloom prepare --model MODEL --data train.jsonl --output set\n"
              "         flashloom finetune --model MODEL --data set --output adapter"};
}

}  // namespace flashloom::cli
