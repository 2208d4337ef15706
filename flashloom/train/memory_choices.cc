#include "flashloom/train/memory_choices.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/core/memory_bandwidth.h"
#include "flashloom/core/progress.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/models/llama/llama_flops.h"
#include "flashloom/ops/linear/peak_flops.h"
#include "flashloom/train/probes.h"

namespace flashloom {
namespace {

// Share of the peak that products reach (docs/architecture.md: 85 to 90 %).
constexpr double kProductShare = 0.85;

// Documents are taken to be a quarter as long as the longest: workspaces of attention grow with
// their number.
constexpr int64_t kDocumentsPerLongest = 4;

// Fewer bits change what is learnt, so each such choice must save a quarter of the time.
constexpr double kFewerBitsCost = 1.25;

double linear_weights(const ModelConfig& config, std::initializer_list<LlamaLinear> linears) {
  double weights = 0;
  for (const LlamaLinear linear : linears) {
    const auto [outputs, inputs] = llama_linear_shape(config, linear);
    weights += static_cast<double>(outputs) * static_cast<double>(inputs);
  }
  return weights;
}

// What a step does again: operations, and bytes moved by operations that compute little.
struct Again {
  double flops = 0;
  double bytes = 0;
  double weights = 0;  // of matrices that are read again by each micro-batch
};

// `layers`: of the backward pass.
Again done_again(const ModelConfig& c, LlamaRecompute level, const LlamaWork& work,
                 int64_t layers) {
  using enum LlamaLinear;
  const double rows = static_cast<double>(layers) * static_cast<double>(work.tokens);
  const auto hidden = static_cast<double>(c.hidden_size);
  const auto ffn = static_cast<double>(c.intermediate_size);
  Again again;
  // What none keeps goes to memory and back; else it is written where the caches hold it, from
  // numbers that are read anyway but for the norms' inputs. Measured: norms is never slower.
  again.bytes += (level == LlamaRecompute::none ? 8 : 4) * rows * (2 * hidden + ffn);
  double weights = 0;
  if (level >= LlamaRecompute::attention) {
    weights += linear_weights(c, {q, k, v});
    again.flops += 4.0 * static_cast<double>(layers * c.heads * c.head_dim) *
                   static_cast<double>(work.visible_pairs);
    again.bytes += 4 * rows * 2 * hidden;
  }
  if (level == LlamaRecompute::blocks) {
    weights += linear_weights(c, {o, gate, up});
    again.bytes += 4 * rows * 4 * hidden;
  }
  again.flops += 2 * rows * weights;
  again.weights = static_cast<double>(layers) * weights;
  return again;
}

double step_seconds(const MemoryQuestion& question, const MemoryChoice& choice,
                    const MachineRates& rates) {
  const ModelConfig& c = question.config;
  const LoraOptions* lora = question.lora ? &*question.lora : nullptr;
  const int64_t tokens = std::max(question.batch_tokens, int64_t{1});
  const int64_t length = std::min(question.sequence_length, tokens);
  const LlamaWork work = {
      .tokens = tokens, .loss_tokens = tokens, .visible_pairs = tokens * (length + 1) / 2};
  const int64_t lowest = llama_lowest_trained_layer(c, question.lora, question.frozen);
  const Again again = done_again(c, choice.recompute, work, c.layers - lowest);
  const double flops = llama_training_flops(c, lora, work, question.frozen) + again.flops;
  // Of a layer and token: norms, rotation, SwiGLU and additions, forward and backward, and what is
  // saved and read back.
  const double elementwise = 4 * static_cast<double>(c.layers * tokens) *
                             static_cast<double>(20 * c.hidden_size + 14 * c.intermediate_size);
  const auto weights = static_cast<double>(parameter_count(c));
  const auto weight_bytes = static_cast<double>(dtype_bytes(choice.weight_dtype));
  // Each micro-batch reads all weights forward and backward; full fine-tuning adds to all
  // gradients.
  const double of_micro_batch =
      (2 * weights + again.weights) * weight_bytes + (lora == nullptr ? 8 * weights : 0);
  // A trained number: gradient cleared, measured, read; weight and moments read and written.
  const double moments = choice.moments == OptimizerMoments::bits8 ? 4 : 16;
  const double trained_weight = lora == nullptr ? 2 * weight_bytes : 8;
  const double update =
      static_cast<double>(llama_trainable_size(c, question.lora, question.frozen)) *
      (12 + trained_weight + moments);
  return flops / (kProductShare * rates.flops) +
         (elementwise + again.bytes + update +
          of_micro_batch * static_cast<double>(choice.shape.bins_per_step)) /
             rates.bytes;
}

// The largest first.
std::vector<StepShape> micro_batches(const MemoryQuestion& question) {
  std::vector<StepShape> shapes;
  for (int64_t parts = 1;; parts *= 2) {
    const int64_t most =
        std::max(question.sequence_length, (question.batch_tokens + parts - 1) / parts);
    shapes.push_back(plan_steps(question.batch_tokens, question.sequence_length, most));
    if (most == question.sequence_length) {
      return shapes;
    }
  }
}

int fewer_bits(const MemoryChoice& choice) {
  return (choice.weight_dtype == DType::bf16 ? 1 : 0) +
         (choice.moments == OptimizerMoments::bits8 ? 1 : 0);
}

}  // namespace

MemoryChoice memory_of(const MemoryQuestion& question, const MemoryChoice& asked) {
  MemoryChoice choice = asked;
  MemoryPlan plan;
  const int64_t tokens =
      std::max({choice.shape.bin_capacity, question.sequence_length, kProbeTokens});
  const LlamaModel model(question.config,
                         {.training = true,
                          .lora = question.lora,
                          .frozen = question.frozen,
                          .weight_dtype = choice.weight_dtype,
                          .blocks = question.blocks,
                          .recompute = choice.recompute,
                          .max_tokens = tokens,
                          .max_sequence_length = std::max(question.sequence_length, kProbeLength),
                          .max_sequences = std::max(kProbeDocuments, tokens * kDocumentsPerLongest /
                                                                         question.sequence_length)},
                         plan);
  OptimizerOptions optimizer = question.optimizer;
  optimizer.moments = choice.moments;
  const Optimizer state(optimizer, model.parameters(), plan, {.rank = 0, .ranks = question.ranks});
  plan.add_outside("process", question.process_bytes);
  choice.weights = plan.kind_bytes(MemoryKind::weights);
  choice.adapters = plan.kind_bytes(MemoryKind::adapters);
  choice.gradients = plan.kind_bytes(MemoryKind::gradients);
  choice.optimizer = plan.kind_bytes(MemoryKind::optimizer);
  choice.activations = plan.kind_bytes(MemoryKind::activations);
  choice.workspace = plan.kind_bytes(MemoryKind::workspace) + plan.kind_bytes(MemoryKind::data) +
                     plan.shared_bytes();
  choice.process = plan.kind_bytes(MemoryKind::process);
  choice.bytes = plan.total_bytes();
  return choice;
}

MachineRates measure_machine() {
  constexpr int64_t kBeyondCaches = int64_t{128} << 20;
  return {.flops = measure_peak_flops(), .bytes = measure_copy_bytes_per_second(kBeyondCaches)};
}

std::string MemoryChoice::flags() const {
  return fmt::format("--recompute {} --optimizer {} --weight-dtype {}",
                     llama_recompute_name(recompute), optimizer_name(moments),
                     dtype_name(weight_dtype));
}

std::vector<MemoryChoice> memory_choices(const MemoryQuestion& question,
                                         const MachineRates& rates) {
  const auto at_least = [](std::string_view name, int64_t value, int64_t least) {
    check(value >= least, "plan", name, fmt::format("at least {}", least),
          fmt::format("{}", value));
  };
  at_least("sequence_length", question.sequence_length, 1);
  at_least("batch_tokens", question.batch_tokens, 1);
  std::vector<MemoryChoice> choices;
  for (const DType weights : {DType::f32, DType::bf16}) {
    for (const OptimizerMoments moments : {OptimizerMoments::f32, OptimizerMoments::bits8}) {
      for (const LlamaRecompute recompute : kLlamaRecomputeLevels) {
        for (const StepShape& shape : micro_batches(question)) {
          choices.push_back(memory_of(question, {.recompute = recompute,
                                                 .moments = moments,
                                                 .weight_dtype = weights,
                                                 .shape = shape}));
          choices.back().seconds = step_seconds(question, choices.back(), rates);
        }
      }
    }
  }
  return choices;
}

std::optional<MemoryChoice> best_choice(std::span<const MemoryChoice> choices, int64_t budget) {
  constexpr double kErrorOfEstimate = 1.03;
  const auto cost = [](const MemoryChoice& choice) {
    return choice.seconds * std::pow(kFewerBitsCost, fewer_bits(choice));
  };
  std::optional<double> least;
  for (const MemoryChoice& choice : choices) {
    if (choice.bytes <= budget) {
      least = std::min(least.value_or(cost(choice)), cost(choice));
    }
  }
  if (!least) {
    return std::nullopt;
  }
  std::optional<MemoryChoice> best;
  for (const MemoryChoice& choice : choices) {
    if (choice.bytes > budget || cost(choice) > kErrorOfEstimate * *least) {
      continue;
    }
    const bool better = !best || fewer_bits(choice) < fewer_bits(*best) ||
                        (fewer_bits(choice) == fewer_bits(*best) && choice.bytes < best->bytes);
    if (better) {
      best = choice;
    }
  }
  return best;
}

MemoryChoice smallest_choice(std::span<const MemoryChoice> choices) {
  check(!choices.empty(), "smallest_choice", "choices", "one or more", "none");
  return *std::min_element(choices.begin(), choices.end(),
                           [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
}

std::string memory_advice(const MemoryQuestion& question, int64_t budget) {
  const std::vector<MemoryChoice> choices = memory_choices(question, measure_machine());
  const std::optional<MemoryChoice> best = best_choice(choices, budget);
  if (best) {
    return fmt::format("these flags fit, with {}: {}", format_bytes(best->bytes), best->flags());
  }
  const MemoryChoice smallest = smallest_choice(choices);
  return fmt::format(
      "nothing fits: documents of {} tokens need at least {}, with {}. A shorter --seq-len{} or a "
      "smaller model needs less",
      question.sequence_length, format_bytes(smallest.bytes), smallest.flags(),
      question.lora ? "" : ", --method lora");
}

int64_t process_bytes(int64_t present, int threads) {
  // Allowances for the stacks and allocator arenas of a thread, and for what saving a model takes:
  // with both, measured peaks are 0.992 to 0.998 of the plan.
  constexpr int64_t kThread = int64_t{1} << 20;
  constexpr int64_t kRoom = int64_t{8} << 20;
  return present + kThread * threads + kRoom;
}

int64_t expected_process_bytes(const ModelConfig& config) {
  constexpr int64_t kProgram = int64_t{8} << 20;
  constexpr int64_t kTokenizerEntry = 400;
  return kProgram + kTokenizerEntry * config.vocabulary_size;
}

}  // namespace flashloom
