#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/finetune_options.h"
#include "cli/memory_flags.h"
#include "cli/ranks.h"
#include "cli/terminal.h"
#include "cli/training_data.h"
#include "flashloom/comm/communicator.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/process_memory.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/json/json.h"
#include "flashloom/text/data_reader.h"
#include "flashloom/text/preview.h"
#include "flashloom/text/supervised_data.h"
#include "flashloom/train/export.h"
#include "flashloom/train/fine_tune.h"
#include "flashloom/train/memory_choices.h"
#include "flashloom/train/parallel/share_documents.h"
#include "flashloom/train/report/run_facts.h"

namespace flashloom::cli {
namespace {

Json result_json(const FineTuneResult& result, const std::string& output, int64_t planned_bytes) {
  const TrainingState& state = result.state;
  Json json = {{"output", output},
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

// Beyond what this process already holds, which its plan counts too. What is free is shared by the
// ranks of a machine; --memory is of each.
int64_t budget_of(const FinetuneOptions& options, const Communicator& ranks) {
  return memory_budget(options.memory,
                       available_memory_bytes() / ranks.local_size() + anonymous_memory_bytes());
}

// Refuses before the data is read what fits with no data at all. Documents may turn out shorter
// than --seq-len, so that is all that is sure.
void require_memory(const FinetuneOptions& options, const ModelBundle& bundle,
                    const Communicator& ranks) {
  const ModelConfig& config = bundle.files.config();
  const FineTuneOptions training = training_options(options, config);
  MemoryQuestion question = memory_question(options.memory, config,
                                            process_bytes(anonymous_memory_bytes(), thread_count()),
                                            base_blocks(options.memory, bundle.files));
  question.sequence_length = 1;
  question.batch_tokens = 1;
  const int64_t budget = budget_of(options, ranks);
  question.ranks = ranks.size();
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

int train(const FinetuneOptions& options, const ModelBundle& bundle, const TrainingData& data,
          Communicator& ranks) {
  FineTuneOptions training = training_options(options, bundle.files.config());
  training.data_settings = data.settings;
  training.ranks = &ranks;
  training.process_bytes = process_bytes(anonymous_memory_bytes(), thread_count());
  training.report.data_rows = describe(data.split.train.counts, data.options);
  const TokenDocuments& held_out = data.split.held_out.documents;
  if (held_out.size() > 0) {
    training.report.held_out_rows = describe(data.split.held_out.counts, data.options);
  }
  FineTune run(bundle, data.split.train.documents, held_out.size() > 0 ? &held_out : nullptr,
               training, budget_of(options, ranks));
  note(fmt::format("memory plan\n{}", run.plan_table()));
  note(
      fmt::format("{} trainable parameters, {} steps of {} micro-batches of up to {} tokens, {} "
                  "threads",
                  run.trainable_parameters(), run.steps(), run.step_shape().bins_per_step,
                  run.step_shape().bin_capacity, thread_count()));
  if (ranks.size() > 1) {
    note(
        fmt::format("{} ranks, each with so many threads, the memory above, and 1/{} of the "
                    "optimizer's state",
                    ranks.size(), ranks.size()));
  }
  if (run.step_shape().bins_per_step < ranks.size()) {
    note(
        fmt::format("warning: a step of this run has {} micro-batches, so {} ranks stand idle; a "
                    "new run with a "
                    "smaller --micro-batch-tokens gives all of them work",
                    run.step_shape().bins_per_step, ranks.size() - run.step_shape().bins_per_step));
  }
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
    if (ranks.rank() == 0) {
      record_failure(options.output, error.what());
      try_report(options.output);
    }
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
  if (ranks.rank() == 0) {
    try_report(options.output);
  }
  if (options.json && ranks.rank() == 0) {
    fmt::print("{}\n", result_json(result, options.output, run.planned_bytes()).dump());
  }
  return result.stopped ? kInterrupted : kSuccess;
}

// Prints the first examples with their loss masks.
void preview(const FinetuneOptions& options, const SupervisedEncoder& encoder) {
  struct Enough {};

  int64_t shown = 0;
  try {
    if (!prepared_directory(options.data_flags()).empty()) {
      throw UsageError("--preview: shows rows of files; a prepared set has tokens alone");
    }
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

// Rank 0 reads and tokenizes files for all; a prepared set is mapped by each.
TrainingData load(const FinetuneOptions& options, const SupervisedEncoder& encoder,
                  Communicator& ranks) {
  const DataFlags flags = options.data_flags();
  const std::string& directory = options.output;  // data that memory does not hold goes there
  if (ranks.size() == 1 || (!prepared_directory(flags).empty() && flags.eval_data.empty())) {
    return load_training_data(flags, encoder, directory);
  }
  TrainingData data;
  if (ranks.rank() == 0) {
    data = load_training_data(flags, encoder, directory);
  } else {
    const int64_t memory = SupervisedOptions().memory_bytes;
    data.split.train.documents = TokenDocuments(directory, memory);
    data.split.held_out.documents = TokenDocuments(directory, memory);
  }
  share_documents(ranks, data.split.train.documents);
  share_documents(ranks, data.split.held_out.documents);
  return data;
}

int run(const FinetuneOptions& options, Communicator& ranks) {
  validate(options);
  set_thread_count(threads_of_rank(options.memory.threads, ranks));
  const ModelBundle bundle = open_model(options.memory.model);
  const SupervisedEncoder encoder(bundle.tokenizer);
  if (options.preview > 0) {
    if (ranks.rank() == 0) {
      preview(options, encoder);
    }
    return kSuccess;
  }
  require_memory(options, bundle, ranks);
  if (ranks.size() == 1) {
    catch_interrupts();
  }
  make_directory(options.output);
  const TrainingData data = load(options, encoder, ranks);
  if (ranks.rank() == 0) {
    tell(data);
  }
  return train(options, bundle, data, ranks);
}

int run(const FinetuneOptions& options) {
  const std::string lost = fmt::format(
      "Checkpoints in {} stay whole, and the same command goes on after the newest of them, with "
      "any "
      "number of ranks",
      options.output);
  return run_as_rank({.timeout_seconds = options.rank_timeout}, lost,
                     [&](Communicator& ranks) { return run(options, ranks); });
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
