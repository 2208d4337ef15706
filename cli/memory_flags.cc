#include "cli/memory_flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "flashloom/core/progress.h"

namespace flashloom::cli {
namespace {

// As a shell reads it back; "*.k_proj.*" must not become names of files.
std::string quoted(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) {
    return word;
  }
  std::string text = "'";
  for (const char c : word) {
    text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  return text + "'";
}

std::string quoted(std::vector<std::string> words) {
  std::transform(words.begin(), words.end(), words.begin(),
                 [](const std::string& word) { return quoted(word); });
  return fmt::format("{}", fmt::join(words, " "));
}

}  // namespace

std::vector<Flag> memory_flags(MemoryFlags& f) {
  const auto default_of = [](const std::optional<std::string>& value) {
    return value ? "; default " + *value : std::string("; default: what the plan proposes");
  };
  return {
      {"--method",
       &f.method,
       "train a low-rank adapter (dora: with magnitudes; qlora, qdora: over weights that stay as a "
       "quantised GGUF file has them), or all weights",
       false,
       {"lora", "dora", "qlora", "qdora", "full"}},
      {"--lora-rank", &f.lora_rank, "size of the adapter"},
      {"--lora-targets", &f.lora_targets, "linears that get an adapter"},
      {"--freeze", &f.freeze,
       "not trained: embeddings, head, norms, layers (3 or 0-11), tensors by name (*.k_proj.*)"},
      {"--seq-len", &f.sequence_length, "tokens of the longest example"},
      {"--batch-tokens", &f.batch_tokens, "tokens an optimizer step"},
      {"--micro-batch-tokens", &f.micro_batch_tokens,
       "of them at once, at most (an example always fits); 0: as many as memory allows"},
      {"--optimizer",
       &f.optimizer,
       "AdamW with moments in f32 (8 bytes a trained number) or in 8 bits (2)" +
           default_of(f.optimizer),
       false,
       {"adamw", "adamw8bit"}},
      {"--weight-dtype",
       &f.weight_dtype,
       "type of matrices in memory; arithmetic is f32" + default_of(f.weight_dtype),
       false,
       {"f32", "bf16"}},
      {"--bf16-updates",
       &f.bf16_updates,
       "how trained bf16 weights take updates: rounded at random, by way of f32 masters, or to "
       "nearest (small ones are lost)",
       false,
       {"stochastic", "master", "nearest"}},
      {"--recompute",
       &f.recompute,
       "what the backward pass computes again to save memory; results do not depend on it" +
           default_of(f.recompute),
       false,
       {"none", "norms", "attention", "blocks"}},
      {"--memory", &f.memory,
       "budget, as 8GB or 512MiB: micro-batches are as large as it allows; default: what is free"},
      {"--threads", &f.threads, "0: all cores; results do not depend on it"},
  };
}

void require_at_least(const char* flag, double value, double least) {
  if (!(value >= least)) {
    throw UsageError(fmt::format("{}: expected at least {}, got {}", flag, least, value));
  }
}

void validate(const MemoryFlags& flags) {
  require_at_least("--lora-rank", static_cast<double>(flags.lora_rank), 1);
  require_at_least("--seq-len", static_cast<double>(flags.sequence_length), 2);
  require_at_least("--batch-tokens", static_cast<double>(flags.batch_tokens), 1);
  require_at_least("--micro-batch-tokens", static_cast<double>(flags.micro_batch_tokens), 0);
  require_at_least("--threads", static_cast<double>(flags.threads), 0);
}

LlamaFrozen frozen_parts(const MemoryFlags& flags, const ModelConfig& config) {
  try {
    return parse_frozen(flags.freeze, config);
  } catch (const InvalidArgument& error) {
    throw UsageError(fmt::format("--freeze: {}", error.what()));
  }
}

LlamaBlockFormats base_blocks(const MemoryFlags& flags, const ModelFiles& files) {
  LlamaBlockFormats blocks;
  if (flags.quantized_base()) {
    blocks = llama_block_formats(files);
    if (blocks.empty()) {
      throw UsageError(
          fmt::format("--method {}: expected a GGUF file with quantised matrices, {} has none "
                      "(flashloom export --type q4_k writes one)",
                      flags.method, files.path()));
    }
  }
  return blocks;
}

MemoryQuestion memory_question(const MemoryFlags& flags, const ModelConfig& config, int64_t process,
                               const LlamaBlockFormats& blocks) {
  MemoryQuestion question = {.config = config,
                             .frozen = frozen_parts(flags, config),
                             .sequence_length = flags.sequence_length,
                             .batch_tokens = flags.batch_tokens,
                             .process_bytes = process,
                             .blocks = blocks};
  question.optimizer.bf16_updates = parse_bf16_updates(flags.bf16_updates);
  if (flags.lora()) {
    const LoraOptions lora = {.rank = flags.lora_rank,
                              .targets = parse_lora_targets(flags.lora_targets),
                              .dora = flags.dora()};
    try {
      question.lora = without_frozen_layers(lora, question.frozen, config);
    } catch (const InvalidArgument& error) {
      throw UsageError(fmt::format("--freeze: {}", error.what()));
    }
    question.frozen = {};
  }
  return question;
}

int64_t memory_budget(const MemoryFlags& flags, int64_t available) {
  if (!flags.memory) {
    return available;
  }
  try {
    return parse_bytes(*flags.memory);
  } catch (const InvalidArgument& error) {
    throw UsageError(fmt::format("--memory: {}", error.what()));
  }
}

std::string finetune_command_line(const MemoryFlags& flags, const MemoryChoice& choice) {
  const MemoryFlags defaults;
  std::string line = fmt::format(
      "flashloom finetune --model {} --method {} --seq-len {} --batch-tokens {} {}",
      quoted(flags.model), flags.method, flags.sequence_length, flags.batch_tokens, choice.flags());
  if (choice.shape.bins_per_step > 1) {
    // Without it a run takes more at once where there is memory.
    line += fmt::format(" --micro-batch-tokens {}", choice.shape.bin_capacity);
  }
  if (flags.lora() && flags.lora_rank != defaults.lora_rank) {
    line += fmt::format(" --lora-rank {}", flags.lora_rank);
  }
  if (flags.lora() && flags.lora_targets != defaults.lora_targets) {
    line += " --lora-targets " + quoted(flags.lora_targets);
  }
  if (!flags.freeze.empty()) {
    line += " --freeze " + quoted(flags.freeze);
  }
  if (choice.weight_dtype == DType::bf16 && !flags.lora() &&
      flags.bf16_updates != defaults.bf16_updates) {
    line += " --bf16-updates " + flags.bf16_updates;
  }
  if (flags.memory) {
    line += " --memory " + quoted(*flags.memory);
  }
  if (flags.threads != defaults.threads) {
    line += fmt::format(" --threads {}", flags.threads);
  }
  return line;
}

}  // namespace flashloom::cli
