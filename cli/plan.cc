#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/memory_flags.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/model_files.h"
#include "flashloom/json/json.h"
#include "flashloom/train/memory_choices.h"

namespace flashloom::cli {
namespace {

struct Options {
  MemoryFlags memory;
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

Json to_json(const MemoryChoice& choice, double fastest, int64_t budget) {
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
  return finetune_command_line(options.memory, choice) + " --data train.jsonl --output run";
}

// Whether the flags leave the choice open.
bool allowed(const MemoryFlags& flags, const MemoryChoice& choice) {
  const auto is = [](const std::optional<std::string>& wanted, std::string_view name) {
    return !wanted || *wanted == name;
  };
  const int64_t most = flags.micro_batch_tokens == 0
                           ? choice.shape.bin_capacity
                           : std::max(flags.micro_batch_tokens, flags.sequence_length);
  return choice.shape.bin_capacity <= most && is(flags.optimizer, optimizer_name(choice.moments)) &&
         is(flags.weight_dtype, dtype_name(choice.weight_dtype)) &&
         is(flags.recompute, llama_recompute_name(choice.recompute));
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
  const MemoryFlags& flags = options.memory;
  validate(flags);
  set_thread_count(static_cast<int>(flags.threads));
  const int64_t budget = memory_budget(flags, available_memory_bytes());
  const ModelConfig config = read_config(flags.model);
  const MemoryQuestion question =
      memory_question(flags, config, process_bytes(expected_process_bytes(config), thread_count()),
                      flags.quantized_base() ? base_blocks(flags, ModelFiles::open(flags.model))
                                             : LlamaBlockFormats());
  std::vector<MemoryChoice> choices = memory_choices(question, measure_machine());
  std::erase_if(choices, [&](const MemoryChoice& choice) { return !allowed(flags, choice); });
  double fastest = choices.front().seconds;
  for (const MemoryChoice& choice : choices) {
    fastest = std::min(fastest, choice.seconds);
  }
  const std::optional<MemoryChoice> best = best_choice(choices, budget);
  if (options.json) {
    Json json = {{"budget", budget}, {"choices", Json::array()}};
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
  std::vector<Flag> flags = {{"--model", &o->memory.model,
                              "Hugging Face directory (its config.json is enough) or GGUF file",
                              true}};
  for (Flag& flag : memory_flags(o->memory)) {
    flags.push_back(std::move(flag));
  }
  flags.push_back({"--all", &o->all, "every micro-batch, not the largest that fits alone"});
  flags.push_back({"--json", &o->json, "one JSON object on standard output"});
  return {.name = "plan",
          .summary = "Show what each choice of a training run costs in memory and time",
          .flags = std::move(flags),
          .run = [o] { return run(*o); },
          .footer = "Example: flashloom plan --model MODEL --method full --memory 8GB"};
}

}  // namespace flashloom::cli
