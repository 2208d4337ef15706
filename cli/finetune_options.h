#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "cli/memory_flags.h"
#include "cli/training_data.h"
#include "flashloom/io/model_config.h"
#include "flashloom/text/supervised_data.h"
#include "flashloom/train/fine_tune.h"

namespace flashloom::cli {

/// The flags of `finetune`.
struct FinetuneOptions {
  MemoryFlags memory;
  std::vector<std::string> data;
  std::vector<std::string> eval_data;
  std::string output;
  std::optional<double> lora_alpha;
  double lora_plus = 16;
  bool rslora = false;
  std::optional<double> learning_rate;
  double weight_decay = 0;
  double clip = 1;
  std::string schedule = "cosine";
  int64_t warmup = 0;
  double minimum_rate = 0;
  double wsd_decay = 0.2;
  double neftune = 0;
  int64_t steps = 0;
  int64_t epochs = 1;
  std::string long_rows = "cut";
  double held_out = 0;
  int64_t eval_steps = 0;
  int64_t save_steps = 0;
  std::optional<std::string> save_dtype;
  std::string resume = "auto";
  std::string guards = "on";
  int64_t seed = 0;
  int64_t preview = 0;
  int64_t samples = 3;
  bool tensorboard = false;
  double rank_timeout = 1800;
  bool json = false;

  DataFlags data_flags() const {
    return {.data = data,
            .eval_data = eval_data,
            .sequence_length = memory.sequence_length,
            .long_rows = long_rows,
            .held_out = held_out};
  }
};

std::vector<Flag> finetune_flags(FinetuneOptions& options);

/// Throws UsageError, naming the flag.
void validate(const FinetuneOptions& options);

/// As the engine takes them.
FineTuneOptions training_options(const FinetuneOptions& options, const ModelConfig& config);

}  // namespace flashloom::cli
