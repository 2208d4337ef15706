#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/finetune_options.h"
#include "cli/memory_flags.h"
#include "cli/terminal.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/process_memory.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/text/data_reader.h"
#include "flashloom/text/preview.h"
#include "flashloom/text/supervised_data.h"
#include "flashloom/train/export.h"
#include "flashloom/train/fine_tune.h"
#include "flashloom/train/memory_choices.h"
#include "flashloom/train/report/run_facts.h"

namespace flashloom::cli {
namespace {

nlohmann::ordered_json result_json(const FineTuneResult& result, const std::string& output,
                                   int64_t planned_bytes) {
  const TrainingState& state = result.state;
  nlohmann::ordered_json json = {{"output", output},
                                 {"steps", state.step},
                                 {"stopped", result.stopped},
                                 {"seconds", state.seconds},
                                 {"tokens", state.tokens},
                                 {"planned_bytes", planned_bytes},
                                 {"checkpoints", result.checkpoints},
                                 {"checkpoint_seconds", result.checkpoint_seconds}};
  const auto add = [&](const char* name, const std::optional<EvaluationResult>& evaluation) {
    if (evaluation) {
      json[name] = evaluation->loss;
      json["eval_tokens"] = evaluation->tokens;
    }
  };
  add("eval_loss_before", state.before);
  add("eval_loss", result.after);
  add("best_eval_loss", state.best);
  return json;
}

// Beyond what this process already holds, which its plan counts too.
int64_t budget_of(const FinetuneOptions& options) {
  return memory_budget(options.memory, available_memory_bytes() + anonymous_memory_bytes());
}

// Refuses before the data is read what fits with no data at all. Documents may turn out shorter
// than --seq-len, so that is all that is sure.
void require_memory(const FinetuneOptions& options, const ModelBundle& bundle) {
  const ModelConfig& config = bundle.files.config();
  const FineTuneOptions training = training_options(options, config);
  MemoryQuestion question = memory_question(options.memory, config,
                                            process_bytes(anonymous_memory_bytes(), thread_count()),
                                            base_blocks(options.memory, bundle.files));
  question.sequence_length = 1;
  question.batch_tokens = 1;
  const int64_t budget = budget_of(options);
  const MemoryChoice least = memory_of(question, {.recompute = training.recompute,
                                                  .moments = training.optimizer.moments,
                                                  .weight_dtype = training.weight_dtype});
  if (least.bytes > budget) {
    question.sequence_length = options.memory.sequence_length;
    question.batch_tokens = options.memory.batch_tokens;
    throw OutOfMemory(fmt::format(
        "this run needs more than {} of memory (weights {}, gradients {}, optimizer {}, and "
        "activations) and {} are free; {}",
        format_bytes(least.bytes), format_bytes(least.weights), format_bytes(least.gradients),
        format_bytes(least.optimizer), format_bytes(budget), memory_advice(question, budget)));
  }
}

// A report that cannot be written (a full disk, say) takes nothing from the run.
void try_report(const std::string& output) {
  try {
    write_report(output, "");
  } catch (const std::exception& error) {
    note(fmt::format("warning: no report: {}", error.what()));
  }
}

int train(const FinetuneOptions& options, const ModelBundle& bundle, const SupervisedData& data,
          const SupervisedData* held_out) {
  FineTuneOptions training = training_options(options, bundle.files.config());
  training.process_bytes = process_bytes(anonymous_memory_bytes(), thread_count());
  const SupervisedOptions supervised = supervised_options(options);
  training.report.data_rows = describe(data.counts, supervised);
  if (held_out != nullptr) {
    training.report.held_out_rows = describe(held_out->counts, supervised);
  }
  FineTune run(bundle, data.documents, held_out != nullptr ? &held_out->documents : nullptr,
               training, budget_of(options));
  note(fmt::format("memory plan\n{}", run.plan_table()));
  note(
      fmt::format("{} trainable parameters, {} steps of {} micro-batches of up to {} tokens, {} "
                  "threads",
                  run.trainable_parameters(), run.steps(), run.step_shape().bins_per_step,
                  run.step_shape().bin_capacity, thread_count()));
  StatusLine status;
  Progress progress(run.steps());
  FineTuneObserver observer;
  observer.stepped = [&](const StepReport& step) {
    progress.advance(step.step);
    status.show(
        fmt::format("{} · loss {:.4f} · {:.0f} tokens/s · {:.0f} % of the machine's GEMM rate",
                    progress.line(), step.loss, static_cast<double>(step.tokens) / step.seconds,
                    100 * step.utilisation),
        step.step == step.steps);
  };
  observer.evaluated = [&](int64_t step, const EvaluationResult& result) {
    status.end();
    note(fmt::format("held-out loss {} step {}: {:.4f} over {} tokens",
                     step == 0 ? "before" : "after", step, result.loss, result.tokens));
  };
  observer.saved = [&](const std::string& directory) {
    status.end();
    note("saved " + directory);
  };
  observer.resumed = [&](int64_t step) {
    note(step == run.steps()
             ? fmt::format("{} holds this run, finished after {} steps; more --steps continue it",
                           options.output, step)
             : fmt::format("going on after step {} of the run in {}", step, options.output));
    progress = Progress(run.steps(), step);
  };
  observer.damaged = [](const std::string& what) {
    note("warning: a checkpoint is damaged, the one before it is used: " + what);
  };
  observer.guarded = [&](const GuardFinding& finding) {
    status.end();
    note(fmt::format("warning ({}, {}): {}", finding.guard,
                     finding.step == 0 ? "before training" : fmt::format("step {}", finding.step),
                     finding.text()));
  };
  observer.stop = interrupted;
  FineTuneResult result;
  try {
    result = run.run(observer);
  } catch (const std::exception& error) {
    status.end();
    record_failure(options.output, error.what());
    try_report(options.output);
    throw;
  }
  if (result.stopped) {
    note(
        fmt::format("interrupted after step {}; what was trained is saved, and the same command "
                    "goes on",
                    result.state.step));
  }
  note(fmt::format("{} steps, {} tokens in {}", result.state.step, result.state.tokens,
                   format_duration(result.state.seconds)));
  try_report(options.output);
  if (options.json) {
    fmt::print("{}\n", result_json(result, options.output, run.planned_bytes()).dump());
  }
  return result.stopped ? kInterrupted : kSuccess;
}

// Prints the first examples with their loss masks.
void preview(const FinetuneOptions& options, const SupervisedEncoder& encoder) {
  struct Enough {};

  int64_t shown = 0;
  try {
    for (const DataFile& file : weighted_files(options.data)) {
      read_data(file.path, [&](const DataRow& row) {
        if (shown == options.preview) {
          throw Enough();
        }
        SupervisedExample example = encoder.encode(row);
        const auto length =
            std::min(example.tokens.size(), static_cast<size_t>(options.memory.sequence_length));
        fmt::print("example {}, {} tokens\n{}\n", ++shown, example.tokens.size(),
                   preview_example(encoder.tokenizer(), std::span(example.tokens).first(length),
                                   std::span(example.loss).first(length)));
      });
    }
  } catch (const Enough&) {
    return;
  }
}

int run(const FinetuneOptions& options) {
  validate(options);
  set_thread_count(static_cast<int>(options.memory.threads));
  const ModelBundle bundle = open_model(options.memory.model);
  const SupervisedEncoder encoder(bundle.tokenizer);
  if (options.preview > 0) {
    preview(options, encoder);
    return kSuccess;
  }
  require_memory(options, bundle);
  catch_interrupts();
  make_directory(options.output);  // tokenized data that memory does not hold goes there
  SupervisedOptions supervised = supervised_options(options);
  const std::vector<DataFile> files = weighted_files(options.data);
  SupervisedSplit data = load_supervised(files, encoder, supervised);
  if (!options.eval_data.empty()) {
    const std::vector<DataFile> held_out(options.eval_data.begin(), options.eval_data.end());
    supervised.held_out = 0;
    data.held_out = load_supervised(held_out, encoder, supervised).train;
  }
  const auto tell = [&](const char* name, const SupervisedData& side) {
    note(fmt::format("{}: {}; {} tokens, {} bear loss", name, describe(side.counts, supervised),
                     side.documents.total_tokens(), side.documents.total_loss_tokens()));
  };
  tell("data", data.train);
  for (size_t i = 0; i < files.size() && files.size() > 1; ++i) {
    const DocumentGroup& group = data.train.documents.groups()[i];
    note(fmt::format("  {}: {} examples, each drawn {} times an epoch", files[i].path.string(),
                     group.count, group.weight));
  }
  const bool evaluates = data.held_out.documents.size() > 0;
  if (evaluates) {
    tell("held-out data", data.held_out);
  }
  return train(options, bundle, data.train, evaluates ? &data.held_out : nullptr);
}

}  // namespace

Command finetune_command() {
  auto o = std::make_shared<FinetuneOptions>();
  return {.name = "finetune",
          .summary = "Train a model on your data (LoRA, DoRA, QLoRA or all weights)",
          .flags = finetune_flags(*o),
          .run = [o] { return run(*o); },
          .footer =
              "Example: flashloom finetune --model MODEL --data train.jsonl "
              "--eval-data held.jsonl --output adapter"};
}

}  // namespace flashloom::cli
