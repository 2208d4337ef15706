#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/loaded_model.h"
#include "cli/terminal.h"
#include "flashloom/core/parallel.h"
#include "flashloom/text/supervised_data.h"
#include "flashloom/train/evaluation.h"

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  std::string adapter;
  std::vector<std::string> data;
  int64_t sequence_length = 1024;
  int64_t threads = 0;
  bool json = false;
};

int run(const Options& options) {
  if (options.sequence_length < 2) {
    throw UsageError(
        fmt::format("--seq-len: expected at least 2, got {}", options.sequence_length));
  }
  set_thread_count(static_cast<int>(options.threads));
  const std::vector<DataFile> files(options.data.begin(), options.data.end());
  const SupervisedOptions supervised = {
      .sequence_length = options.sequence_length,
      .spill_directory = std::filesystem::temp_directory_path().string()};
  const SupervisedData data =
      load_supervised(files, SupervisedEncoder(open_tokenizer(options.model)), supervised).train;
  note(describe(data.counts, supervised));
  // Packed bins of a few short documents use the matrix products better than single ones.
  constexpr int64_t kBinTokens = 1024;
  const int64_t bin = std::max(kBinTokens, data.documents.longest());
  LoadedModel loaded({.model = options.model, .adapter = options.adapter, .max_tokens = bin});
  const EvaluationResult result = evaluate_documents(loaded.model(), data.documents, bin);
  if (options.json) {
    const nlohmann::ordered_json json = {
        {"loss", result.loss}, {"tokens", result.tokens}, {"perplexity", result.perplexity()}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("loss {:.4f} over {} tokens, perplexity {:.3f}\n", result.loss, result.tokens,
               result.perplexity());
  }
  return kSuccess;
}

}  // namespace

Command evaluate_command() {
  auto options = std::make_shared<Options>();
  return {.name = "evaluate",
          .summary = "Mean loss and perplexity of a model on data",
          .flags = {{"--model", &options->model, "Hugging Face directory or GGUF file", true},
                    {"--adapter", &options->adapter, "directory with a LoRA adapter"},
                    {"--data", &options->data, "JSONL or text files", true},
                    {"--seq-len", &options->sequence_length, "longer examples are cut"},
                    {"--threads", &options->threads, "0: all cores"},
                    {"--json", &options->json, "one JSON object on standard output"}},
          .run = [options] { return run(*options); }};
}

}  // namespace flashloom::cli
