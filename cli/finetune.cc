#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
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

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  std::vector<std::string> data;
  std::vector<std::string> eval_data;
  std::string output;
  std::string method = "lora";
  int64_t lora_rank = 16;
  std::optional<double> lora_alpha;
  std::vector<std::string> lora_targets = {"q", "k", "v", "o", "gate", "up", "down"};
  double lora_plus = 16;
  std::optional<double> learning_rate;
  double weight_decay = 0;
  double clip = 1;
  std::string schedule = "cosine";
  int64_t warmup = 0;
  double minimum_rate = 0;
  double wsd_decay = 0.2;
  double neftune = 0;
  std::vector<std::string> freeze;
  bool rslora = false;
  int64_t steps = 0;
  int64_t epochs = 1;
  int64_t sequence_length = 1024;
  std::string long_rows = "cut";
  double held_out = 0;
  int64_t batch_tokens = 1024;
  int64_t eval_steps = 0;
  int64_t save_steps = 0;
  std::string optimizer = "adamw";
  std::string weight_dtype = "f32";
  std::string bf16_updates = "stochastic";
  std::optional<std::string> save_dtype;
  std::string recompute = "norms";
  std::optional<std::string> memory;
  std::string resume = "auto";
  std::string guards = "on";
  int64_t threads = 0;
  int64_t seed = 0;
  int64_t preview = 0;
  bool json = false;
};

void validate(const Options& options) {
  const auto at_least = [](const char* flag, double value, double least) {
    if (!(value >= least)) {
      throw UsageError(fmt::format("{}: expected at least {}, got {}", flag, least, value));
    }
  };
  at_least("--lora-rank", static_cast<double>(options.lora_rank), 1);
  at_least("--lora-alpha", options.lora_alpha.value_or(1), 0);
  at_least("--lora-plus", options.lora_plus, 0);
  at_least("--lr", options.learning_rate.value_or(1), 0);
  at_least("--weight-decay", options.weight_decay, 0);
  at_least("--clip", options.clip, 0);
  const auto share = [](const char* flag, double value) {
    if (!(value >= 0 && value <= 1)) {
      throw UsageError(fmt::format("{}: expected a share from 0 to 1, got {}", flag, value));
    }
  };
  share("--min-lr", options.minimum_rate);
  share("--wsd-decay", options.wsd_decay);
  at_least("--neftune", options.neftune, 0);
  at_least("--warmup", static_cast<double>(options.warmup), 0);
  at_least("--steps", static_cast<double>(options.steps), 0);
  at_least("--epochs", static_cast<double>(options.epochs), 1);
  at_least("--seq-len", static_cast<double>(options.sequence_length), 2);
  at_least("--batch-tokens", static_cast<double>(options.batch_tokens), 1);
  at_least("--eval-steps", static_cast<double>(options.eval_steps), 0);
  at_least("--save-steps", static_cast<double>(options.save_steps), 0);
  at_least("--threads", static_cast<double>(options.threads), 0);
  at_least("--seed", static_cast<double>(options.seed), 0);
  at_least("--preview", static_cast<double>(options.preview), 0);
  if (options.preview == 0 && options.output.empty()) {
    throw UsageError("--output: a directory is needed (or --preview N to look at the data)");
  }
  at_least("--held-out", options.held_out, 0);
  if (options.held_out >= 1) {
    throw UsageError(fmt::format("--held-out: expected a share below 1, got {}", options.held_out));
  }
  if (options.held_out > 0 && !options.eval_data.empty()) {
    throw UsageError("--held-out and --eval-data: expected one of them, got both");
  }
  if (options.eval_steps > 0 && options.eval_data.empty() && options.held_out == 0) {
    throw UsageError("--eval-steps needs --eval-data or --held-out");
  }
}

std::vector<DataFile> weighted_files(const std::vector<std::string>& names) {
  std::vector<DataFile> files;
  for (const std::string& name : names) {
    try {
      files.push_back(parse_data_file(name));
    } catch (const InvalidArgument& error) {
      throw UsageError(fmt::format("--data: {}", error.what()));
    }
  }
  return files;
}

SupervisedOptions supervised_options(const Options& options) {
  return {.sequence_length = options.sequence_length,
          .long_rows = parse_long_rows(options.long_rows),
          .held_out = options.held_out,
          .spill_directory = options.output};
}

// What decides the run's data beside the files' content.
std::vector<std::pair<std::string, std::string>> data_settings(const Options& options) {
  std::vector<double> weights;
  for (const DataFile& file : weighted_files(options.data)) {
    weights.push_back(file.weight);
  }
  return {{"seq_len", fmt::format("{}", options.sequence_length)},
          {"long", options.long_rows},
          {"held_out", fmt::format("{}", options.held_out)},
          {"data_weights", fmt::format("{}", fmt::join(weights, ", "))}};
}

LlamaFrozen frozen_parts(const Options& options, const ModelConfig& config) {
  try {
    return parse_frozen(options.freeze, config);
  } catch (const InvalidArgument& error) {
    throw UsageError(fmt::format("--freeze: {}", error.what()));
  }
}

FineTuneOptions training_options(const Options& options, const ModelConfig& config) {
  constexpr double kLoraLearningRate = 2e-4;
  constexpr double kFullLearningRate = 2e-5;
  FineTuneOptions training = {
      .output = options.output,
      .resume = options.resume == "auto",
      .recompute = parse_llama_recompute(options.recompute),
      .optimizer = {.learning_rate = options.learning_rate.value_or(
                        options.method == "lora" ? kLoraLearningRate : kFullLearningRate),
                    .adapter_b_ratio = options.lora_plus,
                    .weight_decay = options.weight_decay,
                    .clip_norm = options.clip,
                    .moments = parse_optimizer(options.optimizer),
                    .bf16_updates = parse_bf16_updates(options.bf16_updates),
                    .seed = static_cast<uint64_t>(options.seed)},
      .schedule = {.kind = parse_schedule(options.schedule),
                   .warmup = options.warmup,
                   .minimum = options.minimum_rate,
                   .decay = options.wsd_decay},
      .neftune_alpha = options.neftune,
      .frozen = frozen_parts(options, config),
      .steps = options.steps,
      .epochs = options.epochs,
      .batch_tokens = options.batch_tokens,
      .eval_steps = options.eval_steps,
      .save_steps = options.save_steps,
      .weight_dtype = parse_float_dtype(options.weight_dtype),
      .save_dtype = parse_float_dtype(options.save_dtype.value_or(options.weight_dtype)),
      .seed = static_cast<uint64_t>(options.seed),
      .guards = options.guards == "on",
      .data_settings = data_settings(options),
  };
  if (options.method == "lora") {
    training.lora = LoraOptions{
        .rank = options.lora_rank,
        .alpha = options.lora_alpha.value_or(2.0 * static_cast<double>(options.lora_rank)),
        .targets = parse_lora_targets(options.lora_targets),
        .rank_stabilized = options.rslora};
  } else {
    training.lora.reset();
  }
  return training;
}

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
int64_t memory_budget(const Options& options) {
  if (!options.memory) {
    return available_memory_bytes() + anonymous_memory_bytes();
  }
  try {
    return parse_bytes(*options.memory);
  } catch (const InvalidArgument& error) {
    throw UsageError(fmt::format("--memory: {}", error.what()));
  }
}

// Refuses before the data is read what fits with no data at all. Documents may turn out shorter
// than --seq-len, so that is all that is sure.
void require_memory(const Options& options, const ModelBundle& bundle) {
  const FineTuneOptions training = training_options(options, bundle.files.config());
  if (training.lora && training.frozen.any()) {
    return;
  }
  MemoryQuestion question = {
      .config = bundle.files.config(),
      .lora = training.lora,
      .frozen = training.frozen,
      .sequence_length = 1,
      .batch_tokens = 1,
      .optimizer = training.optimizer,
      .process_bytes = process_bytes(anonymous_memory_bytes(), thread_count())};
  const int64_t budget = memory_budget(options);
  const MemoryChoice least = memory_of(question, {.recompute = training.recompute,
                                                  .moments = training.optimizer.moments,
                                                  .weight_dtype = training.weight_dtype});
  if (least.bytes > budget) {
    question.sequence_length = options.sequence_length;
    question.batch_tokens = options.batch_tokens;
    throw OutOfMemory(fmt::format(
        "this run needs more than {} of memory (weights {}, gradients {}, optimizer {}, and "
        "activations) and {} are free; {}",
        format_bytes(least.bytes), format_bytes(least.weights), format_bytes(least.gradients),
        format_bytes(least.optimizer), format_bytes(budget), memory_advice(question, budget)));
  }
}

int train(const Options& options, const ModelBundle& bundle, const SupervisedData& data,
          const SupervisedData* held_out) {
  FineTuneOptions training = training_options(options, bundle.files.config());
  training.process_bytes = process_bytes(anonymous_memory_bytes(), thread_count());
  FineTune run(bundle, data.documents, held_out != nullptr ? &held_out->documents : nullptr,
               training, memory_budget(options));
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
  const FineTuneResult result = run.run(observer);
  if (result.stopped) {
    note(
        fmt::format("interrupted after step {}; what was trained is saved, and the same command "
                    "goes on",
                    result.state.step));
  }
  note(fmt::format("{} steps, {} tokens in {}", result.state.step, result.state.tokens,
                   format_duration(result.state.seconds)));
  if (options.json) {
    fmt::print("{}\n", result_json(result, options.output, run.planned_bytes()).dump());
  }
  return result.stopped ? kInterrupted : kSuccess;
}

// Prints the first examples with their loss masks.
void preview(const Options& options, const SupervisedEncoder& encoder) {
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
            std::min(example.tokens.size(), static_cast<size_t>(options.sequence_length));
        fmt::print("example {}, {} tokens\n{}\n", ++shown, example.tokens.size(),
                   preview_example(encoder.tokenizer(), std::span(example.tokens).first(length),
                                   std::span(example.loss).first(length)));
      });
    }
  } catch (const Enough&) {
  }
}

int run(const Options& options) {
  validate(options);
  set_thread_count(static_cast<int>(options.threads));
  const ModelBundle bundle = open_model(options.model);
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
  auto o = std::make_shared<Options>();
  return {
      .name = "finetune",
      .summary = "Train a model on your data (LoRA or all weights)",
      .flags =
          {{"--model", &o->model, "Hugging Face directory or GGUF file", true},
           {"--data", &o->data,
            "JSONL files (messages; prompt and completion; text; alpaca; sharegpt) or text; FILE:2 "
            "is drawn twice an epoch",
            true},
           {"--eval-data", &o->eval_data, "held-out files: their loss is measured, not trained on"},
           {"--output", &o->output, "directory for the adapter or the weights"},
           {"--method",
            &o->method,
            "train a low-rank adapter, or all weights",
            false,
            {"lora", "full"}},
           {"--lora-rank", &o->lora_rank, "size of the adapter"},
           {"--lora-alpha", &o->lora_alpha, "adapter's factor x rank; default 2 x rank"},
           {"--lora-targets", &o->lora_targets, "linears that get an adapter"},
           {"--lora-plus", &o->lora_plus, "learning rate of B over that of A (LoRA+); 1: LoRA"},
           {"--lr", &o->learning_rate, "peak learning rate; default 2e-4, full 2e-5"},
           {"--rslora", &o->rslora, "adapter's factor is alpha / sqrt(rank), not alpha / rank"},
           {"--freeze", &o->freeze, "not trained: embeddings, head, norms, layers (3 or 0-11)"},
           {"--weight-decay", &o->weight_decay,
            "AdamW's, of matrices; norms, biases and embeddings take none"},
           {"--clip", &o->clip, "largest norm of the gradient; 0: no clipping"},
           {"--schedule",
            &o->schedule,
            "how the learning rate falls",
            false,
            {"cosine", "linear", "wsd", "constant"}},
           {"--warmup", &o->warmup, "steps of rising learning rate"},
           {"--min-lr", &o->minimum_rate, "what it falls to, as a share of the peak"},
           {"--wsd-decay", &o->wsd_decay, "share of the steps in which the wsd schedule falls"},
           {"--neftune", &o->neftune, "alpha of uniform noise on the embeddings; 0: none"},
           {"--steps", &o->steps, "optimizer steps; 0: as many as the epochs take"},
           {"--epochs", &o->epochs, "passes over the data"},
           {"--seq-len", &o->sequence_length, "tokens of an example; see --long"},
           {"--long",
            &o->long_rows,
            "what becomes of rows longer than --seq-len",
            false,
            {"cut", "split", "drop", "refuse"}},
           {"--held-out", &o->held_out, "share of the rows to hold out, chosen by their content"},
           {"--batch-tokens", &o->batch_tokens, "tokens an optimizer step"},
           {"--optimizer",
            &o->optimizer,
            "AdamW with moments in f32 (8 bytes a trained number) or in 8 bits (2)",
            false,
            {"adamw", "adamw8bit"}},
           {"--weight-dtype",
            &o->weight_dtype,
            "type of matrices in memory; arithmetic is f32",
            false,
            {"f32", "bf16"}},
           {"--bf16-updates",
            &o->bf16_updates,
            "how trained bf16 weights take updates: rounded at random, by way of f32 masters, or "
            "to "
            "nearest (small ones are lost)",
            false,
            {"stochastic", "master", "nearest"}},
           {"--recompute",
            &o->recompute,
            "what the backward pass computes again to save memory; results do not depend on it",
            false,
            {"none", "norms", "attention", "blocks"}},
           {"--memory", &o->memory,
            "budget, as 8GB or 512MiB: micro-batches are as large as it allows; default: what is "
            "free"},
           {"--eval-steps", &o->eval_steps, "evaluate every so many steps; 0: before and after"},
           {"--save-steps", &o->save_steps, "checkpoint every so many steps; 0: at the end"},
           {"--resume",
            &o->resume,
            "go on with the run in --output if there is one; or start anew and replace it",
            false,
            {"auto", "never"}},
           {"--save-dtype",
            &o->save_dtype,
            "type of full weights in files; default --weight-dtype",
            false,
            {"f32", "bf16", "f16"}},
           {"--guards",
            &o->guards,
            "warn of signs that the run does not train",
            false,
            {"on", "off"}},
           {"--threads", &o->threads, "0: all cores; results do not depend on it"},
           {"--seed", &o->seed, "of data order and adapter"},
           {"--preview", &o->preview, "print so many examples with their loss mask, and stop"},
           {"--json", &o->json, "one JSON object on standard output at the end"}},
      .run = [o] { return run(*o); },
      .footer =
          "Example: flashloom finetune --model MODEL --data train.jsonl "
          "--eval-data held.jsonl --output adapter"};
}

}  // namespace flashloom::cli
