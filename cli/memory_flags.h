#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "flashloom/io/model_config.h"
#include "flashloom/io/model_files.h"
#include "flashloom/train/memory_choices.h"

namespace flashloom::cli {

/// What decides how much memory a training run takes: the flags that `finetune` and `plan` share.
struct MemoryFlags {
  std::string model;
  std::string method = "lora";
  int64_t lora_rank = 16;
  std::vector<std::string> lora_targets = {"q", "k", "v", "o", "gate", "up", "down"};
  std::vector<std::string> freeze;
  int64_t sequence_length = 1024;
  int64_t batch_tokens = 1024;
  int64_t micro_batch_tokens = 0;
  std::string bf16_updates = "stochastic";
  std::optional<std::string> memory;
  int64_t threads = 0;

  // What a plan chooses, unless it is told: defaults of finetune, absent in a plan.
  std::optional<std::string> optimizer;
  std::optional<std::string> weight_dtype;
  std::optional<std::string> recompute;

  /// Adapters, of whichever kind.
  bool lora() const { return method != "full"; }

  bool dora() const { return method.ends_with("dora"); }

  bool quantized_base() const { return method.starts_with('q'); }
};

/// The flags of all but --model, as jobs list them.
std::vector<Flag> memory_flags(MemoryFlags& flags);

/// Throw UsageError, naming the flag.
void validate(const MemoryFlags& flags);
void require_at_least(const char* flag, double value, double least);
LlamaFrozen frozen_parts(const MemoryFlags& flags, const ModelConfig& config);

/// The blocks that QLoRA leaves the base weights in; none for other methods. Throws UsageError if
/// the model's are not quantised.
LlamaBlockFormats base_blocks(const MemoryFlags& flags, const ModelFiles& files);

/// The run as the plan sees it. `process` is what the program holds beside it.
MemoryQuestion memory_question(const MemoryFlags& flags, const ModelConfig& config, int64_t process,
                               const LlamaBlockFormats& blocks);

/// --memory, or else `available`.
int64_t memory_budget(const MemoryFlags& flags, int64_t available);

/// The beginning of the command that runs what was planned, all of it but the data.
std::string finetune_command_line(const MemoryFlags& flags, const MemoryChoice& choice);

}  // namespace flashloom::cli
