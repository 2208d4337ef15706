#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/model_files.h"
#include "flashloom/train/memory_choices.h"

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  std::string method = "lora";
  int64_t lora_rank = 16;
  std::vector<std::string> lora_targets = {"q", "k", "v", "o", "gate", "up", "down"};
  int64_t sequence_length = 1024;
  int64_t batch_tokens = 1024;
  std::string bf16_updates = "stochastic";
  std::optional<std::string> memory;
  int64_t threads = 0;
  bool all = false;
  bool json = false;
};

/// Of a directory or a config.json its JSON alone: the weights need not be there.
ModelConfig read_config(const std::string& model) {
  std::string path = model;
  if (std::filesystem::is_directory(path)) {
    path += "/config.json";
  }
  if (path.ends_with(".json")) {
    return parse_hugging_face_config(MappedFile(path).text(), path);
  }
  return ModelFiles::open(path).config();
}

nlohmann::ordered_json to_json(const MemoryChoice& choice, double fastest, int64_t budget) {
  return {{"recompute", llama_recompute_name(choice.recompute)},
          {"optimizer", optimizer_name(choice.moments)},
          {"weight_dtype", dtype_name(choice.weight_dtype)},
          {"micro_batch_tokens", choice.shape.bin_capacity},
          {"micro_batches", choice.shape.bins_per_step},
          {"weights", choice.weights},
          {"adapters", choice.adapters},
          {"gradients", choice.gradients},
          {"optimizer_state", choice.optimizer},
          {"activations", choice.activations},
          {"workspace", choice.workspace},
          {"process", choice.process},
          {"bytes", choice.bytes},
          {"relative_time", choice.seconds / fastest},
          {"fits", choice.bytes <= budget}};
}

std::string command_of(const Options& options, const MemoryChoice& choice) {
  std::string command = fmt::format(
      "flashloom finetune --model {} --method {} --seq-len {} --batch-tokens {} {}", options.model,
      options.method, options.sequence_length, options.batch_tokens, choice.flags());
  const Options defaults;
  if (options.method == "lora" && options.lora_rank != defaults.lora_rank) {
    command += fmt::format(" --lora-rank {}", options.lora_rank);
  }
  if (options.method == "lora" && options.lora_targets != defaults.lora_targets) {
    command += " --lora-targets";
    for (const std::string& target : options.lora_targets) {
      command += " " + target;
    }
  }
  if (options.bf16_updates != defaults.bf16_updates && choice.weight_dtype == DType::bf16) {
    command += " --bf16-updates " + options.bf16_updates;
  }
  if (options.memory) {
    command += " --memory " + *options.memory;
  }
  return command + " --data train.jsonl --output run";
}

void print_table(const std::vector<MemoryChoice>& choices, double fastest, int64_t budget,
                 bool all) {
  fmt::print("{:<10} {:<10} {:<5} {:>12} {:>9} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9} {:>9} {:>6}\n",
             "recompute", "optimizer", "type", "micro-batch", "weights", "gradients", "optimizer",
             "adapters", "activations", "workspace", "process", "together", "time");
  for (size_t i = 0; i < choices.size(); ++i) {
    const MemoryChoice& c = choices[i];
    // Of micro-batches the largest that fits, else the smallest.
    const auto same = [&](size_t j) {
      return j < choices.size() && choices[j].flags() == c.flags();
    };
    const bool larger_fits = i > 0 && same(i - 1) && choices[i - 1].bytes <= budget;
    const bool smaller_may = c.bytes > budget && same(i + 1);
    if (!all && (larger_fits || smaller_may)) {
      continue;
    }
    fmt::print(
        "{:<10} {:<10} {:<5} {:>12} {:>9} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9} {:>9} {:>6.2f}{}\n",
        llama_recompute_name(c.recompute), optimizer_name(c.moments), dtype_name(c.weight_dtype),
        fmt::format("{} x {}", c.shape.bins_per_step, c.shape.bin_capacity),
        format_bytes(c.weights), format_bytes(c.gradients), format_bytes(c.optimizer),
        format_bytes(c.adapters), format_bytes(c.activations), format_bytes(c.workspace),
        format_bytes(c.process), format_bytes(c.bytes), c.seconds / fastest,
        c.bytes <= budget ? "" : "  does not fit");
  }
}

int run(const Options& options) {
  if (options.lora_rank < 1 || options.sequence_length < 2 || options.batch_tokens < 1 ||
      options.threads < 0) {
    throw UsageError(
        "--lora-rank, --batch-tokens: expected 1 or more; --seq-len: 2 or more; --threads: 0 or "
        "more");
  }
  set_thread_count(static_cast<int>(options.threads));
  int64_t budget = available_memory_bytes();
  if (options.memory) {
    try {
      budget = parse_bytes(*options.memory);
    } catch (const InvalidArgument& error) {
      throw UsageError(fmt::format("--memory: {}", error.what()));
    }
  }
  MemoryQuestion question = {.config = read_config(options.model),
                             .sequence_length = options.sequence_length,
                             .batch_tokens = options.batch_tokens};
  question.optimizer.bf16_updates = parse_bf16_updates(options.bf16_updates);
  if (options.method == "lora") {
    question.lora =
        LoraOptions{.rank = options.lora_rank, .targets = parse_lora_targets(options.lora_targets)};
  }
  question.process_bytes = process_bytes(expected_process_bytes(question.config), thread_count());
  const std::vector<MemoryChoice> choices = memory_choices(question, measure_machine());
  double fastest = choices.front().seconds;
  for (const MemoryChoice& choice : choices) {
    fastest = std::min(fastest, choice.seconds);
  }
  const std::optional<MemoryChoice> best = best_choice(choices, budget);
  if (options.json) {
    nlohmann::ordered_json json = {{"budget", budget}, {"choices", nlohmann::json::array()}};
    for (const MemoryChoice& choice : choices) {
      json["choices"].push_back(to_json(choice, fastest, budget));
    }
    if (best) {
      json["proposal"] = to_json(*best, fastest, budget);
      json["command"] = command_of(options, *best);
    }
    fmt::print("{}\n", json.dump());
  } else {
    print_table(choices, fastest, budget, options.all);
  }
  if (!best) {
    const MemoryChoice smallest = smallest_choice(choices);
    throw OutOfMemory(
        fmt::format("{:.1f} MB of memory: nothing fits; the smallest needs {:.1f} MB, with {}",
                    static_cast<double>(budget) / 1e6, static_cast<double>(smallest.bytes) / 1e6,
                    smallest.flags()));
  }
  if (!options.json) {
    fmt::print("\n{} of {}; fits, and is the fastest that is as exact as may be:\n{}\n",
               format_bytes(best->bytes), format_bytes(budget), command_of(options, *best));
  }
  return kSuccess;
}

}  // namespace

Command plan_command() {
  auto o = std::make_shared<Options>();
  return {.name = "plan",
          .summary = "Show what each choice of a training run costs in memory and time",
          .flags = {{"--model", &o->model,
                     "Hugging Face directory (its config.json is enough) or GGUF file", true},
                    {"--method",
                     &o->method,
                     "train a low-rank adapter, or all weights",
                     false,
                     {"lora", "full"}},
                    {"--lora-rank", &o->lora_rank, "size of the adapter"},
                    {"--lora-targets", &o->lora_targets, "linears that get an adapter"},
                    {"--seq-len", &o->sequence_length, "longest example"},
                    {"--batch-tokens", &o->batch_tokens, "tokens an optimizer step"},
                    {"--bf16-updates",
                     &o->bf16_updates,
                     "as finetune's",
                     false,
                     {"stochastic", "master", "nearest"}},
                    {"--memory", &o->memory, "budget, as 8GB or 512MiB; default: what is free"},
                    {"--threads", &o->threads, "0: all cores"},
                    {"--all", &o->all, "every micro-batch, not the largest that fits alone"},
                    {"--json", &o->json, "one JSON object on standard output"}},
          .run = [o] { return run(*o); },
          .footer = "Example: flashloom plan --model MODEL --method full --memory 8GB"};
}

}  // namespace flashloom::cli
