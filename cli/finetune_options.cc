#include "cli/finetune_options.h"

#include <fmt/format.h>

#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/train/export.h"

namespace flashloom::cli {
namespace {

// finetune_flags() gives these a default.
std::string chosen(const std::optional<std::string>& flag) {
  return flag.value_or("");
}

}  // namespace

void validate(const FinetuneOptions& options) {
  validate(options.memory);
  require_at_least("--lora-alpha", options.lora_alpha.value_or(1), 0);
  require_at_least("--lora-plus", options.lora_plus, 0);
  require_at_least("--lr", options.learning_rate.value_or(1), 0);
  require_at_least("--weight-decay", options.weight_decay, 0);
  require_at_least("--clip", options.clip, 0);
  const auto share = [](const char* flag, double value) {
    if (!(value >= 0 && value <= 1)) {
      throw UsageError(fmt::format("{}: expected a share from 0 to 1, got {}", flag, value));
    }
  };
  share("--min-lr", options.minimum_rate);
  share("--wsd-decay", options.wsd_decay);
  require_at_least("--neftune", options.neftune, 0);
  require_at_least("--warmup", static_cast<double>(options.warmup), 0);
  require_at_least("--steps", static_cast<double>(options.steps), 0);
  require_at_least("--epochs", static_cast<double>(options.epochs), 1);
  require_at_least("--eval-steps", static_cast<double>(options.eval_steps), 0);
  require_at_least("--save-steps", static_cast<double>(options.save_steps), 0);
  require_at_least("--seed", static_cast<double>(options.seed), 0);
  require_at_least("--preview", static_cast<double>(options.preview), 0);
  require_at_least("--samples", static_cast<double>(options.samples), 0);
  if (options.preview == 0 && options.output.empty()) {
    throw UsageError("--output: a directory is needed (or --preview N to look at the data)");
  }
  validate(options.data_flags());
  require_at_least("--rank-timeout", options.rank_timeout, 1);
  const bool may_evaluate = !options.eval_data.empty() || options.held_out > 0 ||
                            !prepared_directory(options.data_flags()).empty();
  if (options.eval_steps > 0 && !may_evaluate) {
    throw UsageError("--eval-steps needs --eval-data or --held-out");
  }
}

FineTuneOptions training_options(const FinetuneOptions& options, const ModelConfig& config) {
  const MemoryFlags& flags = options.memory;
  constexpr double kLoraLearningRate = 2e-4;
  constexpr double kFullLearningRate = 2e-5;
  FineTuneOptions training = {
      .output = options.output,
      .resume = options.resume == "auto",
      .recompute = parse_llama_recompute(chosen(flags.recompute)),
      .optimizer = {.learning_rate = options.learning_rate.value_or(
                        flags.lora() ? kLoraLearningRate : kFullLearningRate),
                    .adapter_b_ratio = options.lora_plus,
                    .weight_decay = options.weight_decay,
                    .clip_norm = options.clip,
                    .moments = parse_optimizer(chosen(flags.optimizer)),
                    .bf16_updates = parse_bf16_updates(flags.bf16_updates),
                    .seed = static_cast<uint64_t>(options.seed)},
      .schedule = {.kind = parse_schedule(options.schedule),
                   .warmup = options.warmup,
                   .minimum = options.minimum_rate,
                   .decay = options.wsd_decay},
      .neftune_alpha = options.neftune,
      .frozen = frozen_parts(flags, config),
      .steps = options.steps,
      .epochs = options.epochs,
      .batch_tokens = flags.batch_tokens,
      .micro_batch_tokens = flags.micro_batch_tokens,
      .eval_steps = options.eval_steps,
      .save_steps = options.save_steps,
      .weight_dtype = parse_float_dtype(chosen(flags.weight_dtype)),
      .quantized_base = flags.quantized_base(),
      .save_dtype = parse_float_dtype(options.save_dtype.value_or(chosen(flags.weight_dtype))),
      .seed = static_cast<uint64_t>(options.seed),
      .guards = options.guards == "on",
      .report = {.samples = options.samples,
                 .tensorboard = options.tensorboard,
                 .program = "flashloom " FLASHLOOM_VERSION,
                 .data_files = options.data,
                 .held_out_files = options.eval_data},
  };
  if (flags.lora()) {
    training.lora = LoraOptions{
        .rank = flags.lora_rank,
        .alpha = options.lora_alpha.value_or(2.0 * static_cast<double>(flags.lora_rank)),
        .targets = parse_lora_targets(flags.lora_targets),
        .rank_stabilized = options.rslora,
        .dora = flags.dora()};
  } else {
    training.lora.reset();
  }
  return training;
}

std::vector<Flag> finetune_flags(FinetuneOptions& o) {
  o.memory.optimizer = "adamw";
  o.memory.weight_dtype = "f32";
  o.memory.recompute = "norms";
  std::vector<Flag> flags = {
      {"--model", &o.memory.model, "Hugging Face directory or GGUF file", true},
      {"--data", &o.data,
       "JSONL files (messages; prompt and completion; text; alpaca; sharegpt), text, or .bin files "
       "of tokens; FILE:2 is drawn twice an epoch; or a set of `flashloom prepare`",
       true},
      {"--eval-data", &o.eval_data, "held-out files: their loss is measured, not trained on"},
      {"--output", &o.output, "directory for the adapter or the weights"},
  };
  for (Flag& flag : memory_flags(o.memory)) {
    flags.push_back(std::move(flag));
  }
  const std::vector<Flag> own = {
      {"--lora-alpha", &o.lora_alpha, "adapter's factor x rank; default 2 x rank"},
      {"--lora-plus", &o.lora_plus, "learning rate of B over that of A (LoRA+); 1: LoRA"},
      {"--rslora", &o.rslora, "adapter's factor is alpha / sqrt(rank), not alpha / rank"},
      {"--lr", &o.learning_rate, "peak learning rate; default 2e-4, full 2e-5"},
      {"--weight-decay", &o.weight_decay,
       "AdamW's, of matrices; norms, biases and embeddings take none"},
      {"--clip", &o.clip, "largest norm of the gradient; 0: no clipping"},
      {"--schedule",
       &o.schedule,
       "how the learning rate falls",
       false,
       {"cosine", "linear", "wsd", "constant"}},
      {"--warmup", &o.warmup, "steps of rising learning rate"},
      {"--min-lr", &o.minimum_rate, "what it falls to, as a share of the peak"},
      {"--wsd-decay", &o.wsd_decay, "share of the steps in which the wsd schedule falls"},
      {"--neftune", &o.neftune, "alpha of uniform noise on the embeddings; 0: none"},
      {"--steps", &o.steps, "optimizer steps; 0: as many as the epochs take"},
      {"--epochs", &o.epochs, "passes over the data"},
      {"--long",
       &o.long_rows,
       "what becomes of rows longer than --seq-len",
       false,
       {"cut", "split", "drop", "refuse"}},
      {"--held-out", &o.held_out, "share of the rows to hold out, chosen by their content"},
      {"--eval-steps", &o.eval_steps, "evaluate every so many steps; 0: before and after"},
      {"--save-steps", &o.save_steps, "checkpoint every so many steps; 0: at the end"},
      {"--resume",
       &o.resume,
       "go on with the run in --output if there is one; or start anew and replace it",
       false,
       {"auto", "never"}},
      {"--save-dtype",
       &o.save_dtype,
       "type of full weights in files; default --weight-dtype",
       false,
       {"f32", "bf16", "f16"}},
      {"--guards", &o.guards, "warn of signs that the run does not train", false, {"on", "off"}},
      {"--seed", &o.seed, "of data order and adapter"},
      {"--preview", &o.preview, "print so many examples with their loss mask, and stop"},
      {"--samples", &o.samples, "questions of the data to answer before and after, for the report"},
      {"--tensorboard", &o.tensorboard, "write TensorBoard's event files into OUTPUT/tensorboard"},
      {"--rank-timeout", &o.rank_timeout,
       "under mpirun: seconds without an answer after which another rank counts as lost"},
      {"--json", &o.json, "one JSON object on standard output at the end"},
  };
  flags.insert(flags.end(), own.begin(), own.end());
  return flags;
}

}  // namespace flashloom::cli
