#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/loaded_model.h"
#include "cli/terminal.h"
#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/json/json.h"
#include "flashloom/text/data_reader.h"
#include "flashloom/text/multiple_choice.h"
#include "flashloom/text/rolling_windows.h"
#include "flashloom/text/supervised_data.h"
#include "flashloom/train/evaluation.h"

namespace flashloom::cli {
namespace {

// Packed bins of a few short documents use the matrix products better than single ones.
constexpr int64_t kBinTokens = 1024;

struct Options {
  std::string model;
  std::string adapter;
  std::vector<std::string> data;
  std::string choices;
  int64_t sequence_length = 1024;
  int64_t window = 0;
  int64_t stride = 0;
  int64_t threads = 0;
  bool json = false;
};

/// Documents to score, and a model that holds them.
LoadedModel load_for(const Options& options, const TokenDocuments& documents, int64_t& bin) {
  bin = std::max(kBinTokens, documents.longest());
  return LoadedModel({.model = options.model, .adapter = options.adapter, .max_tokens = bin});
}

void print(const Options& options, const Json& json, const std::string& line) {
  fmt::print("{}\n", options.json ? json.dump() : line);
}

void evaluate_rows(const Options& options) {
  const std::vector<DataFile> files(options.data.begin(), options.data.end());
  const SupervisedOptions supervised = {
      .sequence_length = options.sequence_length,
      .spill_directory = std::filesystem::temp_directory_path().string()};
  const SupervisedData data =
      load_supervised(files, SupervisedEncoder(open_tokenizer(options.model)), supervised).train;
  note(describe(data.counts, supervised));
  int64_t bin = 0;
  LoadedModel loaded = load_for(options, data.documents, bin);
  const EvaluationResult result = evaluate_documents(loaded.model(), data.documents, bin);
  print(options,
        {{"loss", result.loss}, {"tokens", result.tokens}, {"perplexity", result.perplexity()}},
        fmt::format("loss {:.4f} over {} tokens, perplexity {:.3f}", result.loss, result.tokens,
                    result.perplexity()));
}

// Texts as a whole: a plain text file, or each row of texts.
std::vector<std::string> read_texts(const std::vector<std::string>& files) {
  std::vector<std::string> texts;
  for (const std::string& file : files) {
    read_data(file, [&](DataRow&& row) {
      if (row.kind != DataRowKind::text && row.kind != DataRowKind::document) {
        throw IoError(row.file, fmt::format("line {}", row.line),
                      "--window: expected a row with `text` or a plain text file");
      }
      if (row.begins) {
        texts.emplace_back();
      }
      texts.back() += row.text;
    });
  }
  return texts;
}

void evaluate_windows(const Options& options) {
  const int64_t stride = options.stride == 0 ? options.window : options.stride;
  const Tokenizer tokenizer = open_tokenizer(options.model);
  const std::optional<int32_t> prefix =
      tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
  if (!prefix) {
    throw UsageError("--window: the model's tokenizer has neither a BOS nor an end token");
  }
  TokenDocuments documents(std::filesystem::temp_directory_path().string(), 64 << 20);
  int64_t bytes = 0;
  for (const std::string& text : read_texts(options.data)) {
    const std::vector<int32_t> tokens = tokenizer.encode(text, {.add_special_tokens = false});
    if (!tokens.empty()) {
      add_rolling_windows(documents, tokens, *prefix, options.window, stride);
    }
    bytes += static_cast<int64_t>(text.size());
  }
  int64_t bin = 0;
  LoadedModel loaded = load_for(options, documents, bin);
  const EvaluationResult result = evaluate_documents(loaded.model(), documents, bin);
  const double bits = result.loss * static_cast<double>(result.tokens) /
                      (std::numbers::ln2 * static_cast<double>(bytes));
  print(
      options,
      {{"loss", result.loss},
       {"tokens", result.tokens},
       {"perplexity", result.perplexity()},
       {"bytes", bytes},
       {"bits_per_byte", bits},
       {"byte_perplexity", std::exp2(bits)},
       {"windows", documents.size()}},
      fmt::format("loss {:.4f} over {} tokens, perplexity {:.3f}; {:.4f} bits a byte ({} windows)",
                  result.loss, result.tokens, result.perplexity(), bits, documents.size()));
}

void evaluate_choices(const Options& options) {
  const std::vector<Question> questions = read_questions(options.choices);
  TokenDocuments documents;
  add_choices(documents, questions, open_tokenizer(options.model), options.sequence_length);
  int64_t bin = 0;
  LoadedModel loaded = load_for(options, documents, bin);
  const ChoiceAccuracy result =
      choice_accuracy(questions, document_losses(loaded.model(), documents, bin));
  print(options,
        {{"questions", result.questions},
         {"acc", result.accuracy},
         {"acc_stderr", result.accuracy_error},
         {"acc_norm", result.normalized},
         {"acc_norm_stderr", result.normalized_error}},
        fmt::format("{} questions: accuracy {:.4f} ± {:.4f}, by likelihood per character "
                    "{:.4f} ± {:.4f}",
                    result.questions, result.accuracy, result.accuracy_error, result.normalized,
                    result.normalized_error));
}

int run(const Options& options) {
  if (options.sequence_length < 2) {
    throw UsageError(
        fmt::format("--seq-len: expected at least 2, got {}", options.sequence_length));
  }
  if (options.data.empty() == options.choices.empty()) {
    throw UsageError("expected either --data or --choices");
  }
  if (options.window < 0 || options.stride < 0 || options.stride > options.window) {
    throw UsageError(fmt::format("--stride: expected 1 to --window, got {} and --window {}",
                                 options.stride, options.window));
  }
  set_thread_count(static_cast<int>(options.threads));
  if (!options.choices.empty()) {
    evaluate_choices(options);
  } else if (options.window > 0) {
    evaluate_windows(options);
  } else {
    evaluate_rows(options);
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
                    {"--data", &options->data, "JSONL or text files"},
                    {"--choices", &options->choices,
                     "JSONL of question, choices, answer: accuracy by likelihood instead"},
                    {"--window", &options->window,
                     "every token of texts, predicted from so many before it"},
                    {"--stride", &options->stride,
                     "tokens that a window predicts (default: all of it)"},
                    {"--seq-len", &options->sequence_length, "longer examples are cut"},
                    {"--threads", &options->threads, "0: all cores"},
                    {"--json", &options->json, "one JSON object on standard output"}},
          .run = [options] { return run(*options); }};
}

}  // namespace flashloom::cli
