#include "flashloom/train/fine_tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "flashloom/core/check.h"
#include "flashloom/core/process_memory.h"
#include "flashloom/core/progress.h"
#include "flashloom/models/llama/llama_flops.h"
#include "flashloom/ops/linear/peak_flops.h"
#include "flashloom/train/memory_choices.h"
#include "flashloom/train/non_finite.h"
#include "flashloom/train/probes.h"
#include "flashloom/train/schedule.h"

namespace flashloom {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

LlamaWork work_of(const PackedBatch& batch) {
  LlamaWork work = {.tokens = static_cast<int64_t>(batch.tokens.size()),
                    .loss_tokens = batch.loss_tokens};
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    const int64_t length = batch.cu_seqlens[i + 1] - batch.cu_seqlens[i];
    work.visible_pairs += length * (length + 1) / 2;
  }
  return work;
}

void validate(const FineTuneOptions& options, const TokenDocuments& train) {
  const auto at_least = [](std::string_view name, int64_t value, int64_t least) {
    check(value >= least, "finetune", name, fmt::format("at least {}", least),
          fmt::format("{}", value));
  };
  at_least("steps", options.steps, 0);
  at_least("epochs", options.epochs, 1);
  at_least("batch_tokens", options.batch_tokens, 1);
  at_least("micro_batch_tokens", options.micro_batch_tokens, 0);
  at_least("warmup", options.schedule.warmup, 0);
  check(std::isfinite(options.neftune_alpha) && options.neftune_alpha >= 0, "finetune", "neftune",
        "a number from 0", fmt::format("{}", options.neftune_alpha));
  at_least("eval_steps", options.eval_steps, 0);
  at_least("save_steps", options.save_steps, 0);
  check(train.size() > 0, "finetune", "data", "at least one example", "none");
  check(train.total_loss_tokens() > 0, "finetune", "data", "loss-bearing tokens", "none");
}

// The largest bins of at most `most` tokens that fit, but never smaller than the longest document.
StepShape largest_bins(int64_t batch_tokens, int64_t most, int64_t longest,
                       const std::function<bool(const StepShape&)>& fits) {
  int64_t accepted = longest;
  int64_t refused = std::max(longest, most) + 1;
  for (int64_t tried = refused - 1; refused - accepted > 1;
       tried = accepted + (refused - accepted) / 2) {
    (fits(plan_steps(batch_tokens, longest, tried)) ? accepted : refused) = tried;
  }
  return plan_steps(batch_tokens, longest, accepted);
}

// The same with as many micro-batches for every rank, so that none waits for the others.
StepShape for_ranks(const StepShape& shape, int ranks, int64_t batch_tokens, int64_t longest) {
  const int64_t even = (shape.bins_per_step + ranks - 1) / ranks * ranks;
  return plan_steps(batch_tokens, longest, std::max(longest, (batch_tokens + even - 1) / even));
}

}  // namespace

FineTune::FineTune(const ModelBundle& bundle, const TokenDocuments& train,
                   const TokenDocuments* held_out, FineTuneOptions options, int64_t memory_budget)
    : bundle_(bundle),
      options_(std::move(options)),
      train_(train),
      held_out_(held_out),
      memory_budget_(memory_budget) {
  validate(options_, train);
  frozen_name_ = describe(options_.frozen);
  if (options_.lora) {
    options_.lora = without_frozen_layers(*options_.lora, options_.frozen, bundle.files.config());
    options_.frozen = {};
  }
  if (options_.quantized_base) {
    blocks_ = llama_block_formats(bundle.files);
    check(!blocks_.empty() && options_.lora, "finetune", "quantized_base",
          "adapters on a GGUF file with quantised matrices", bundle.path);
  }
  const int ranks = options_.ranks != nullptr ? options_.ranks->size() : 1;
  std::optional<StepShape> recorded;
  if (ranks == 1 || options_.ranks->rank() == 0) {
    recorded = open_output();
  }
  if (ranks > 1) {
    recorded = agree_with_ranks(recorded, memory_budget);
    memory_budget_ = memory_budget;
  }
  const ModelConfig& config = bundle.files.config();
  const std::vector<int64_t> lengths = train.lengths();
  const std::vector<int64_t> held_out_lengths =
      held_out != nullptr ? held_out->lengths() : std::vector<int64_t>();
  const int64_t longest = train.longest();
  const int64_t longest_anywhere = std::max(longest, held_out != nullptr ? held_out->longest() : 0);
  const auto model_options = [&](const StepShape& shape) {
    const int64_t tokens = std::max({shape.bin_capacity, longest_anywhere, kProbeTokens});
    return LlamaModel::Options{
        .training = true,
        .lora = options_.lora,
        .frozen = options_.frozen,
        .weight_dtype = options_.weight_dtype,
        .blocks = blocks_,
        .recompute = options_.recompute,
        .max_tokens = tokens,
        .max_sequence_length = std::max(longest_anywhere, kProbeLength),
        .max_sequences =
            std::max({most_documents_in_a_bin(lengths, tokens, train.groups()),
                      most_documents_in_a_bin(held_out_lengths, tokens), kProbeDocuments})};
  };
  const auto fits = [&](const StepShape& shape) {
    MemoryPlan plan;
    const LlamaModel model(config, model_options(shape), plan);
    plan_update(model.parameters(), plan);
    return plan.total_bytes() + options_.process_bytes <= memory_budget;
  };
  // A micro-batch for each rank at least.
  const int64_t share = (options_.batch_tokens + ranks - 1) / ranks;
  const int64_t most =
      options_.micro_batch_tokens > 0 ? std::min(options_.micro_batch_tokens, share) : share;
  shape_ = recorded ? *recorded
                    : for_ranks(largest_bins(options_.batch_tokens, most, longest, fits), ranks,
                                options_.batch_tokens, longest);

  model_ = std::make_unique<LlamaModel>(config, model_options(shape_), plan_);
  std::tie(parallel_, optimizer_) = plan_update(model_->parameters(), plan_);
  plan_.add_outside("program, tokenizer, data", options_.process_bytes);
  if (plan_.total_bytes() > memory_budget) {
    throw OutOfMemory(fmt::format("this run needs {} of memory and {} are free\n{}{}",
                                  format_bytes(plan_.total_bytes()), format_bytes(memory_budget),
                                  plan_.table(),
                                  memory_advice({.config = config,
                                                 .lora = options_.lora,
                                                 .frozen = options_.frozen,
                                                 .sequence_length = longest_anywhere,
                                                 .batch_tokens = options_.batch_tokens,
                                                 .optimizer = options_.optimizer,
                                                 .process_bytes = options_.process_bytes,
                                                 .blocks = blocks_},
                                                memory_budget)));
  }
  arena_ = std::make_unique<Arena>(plan_);
  model_->bind(*arena_);
  model_->load(bundle.files);
  model_->initialize_adapters(options_.seed);
  if (parallel_) {
    parallel_->bind(*arena_, model_->parameters());
  }
  optimizer_->bind(*arena_, model_->parameters());
  open_run(train, recorded.has_value());
  stream_ = std::make_unique<PackedStream>(train, shape_, PackingOptions{.seed = options_.seed});
  steps_ = options_.steps > 0 ? options_.steps : options_.epochs * stream_->steps_per_epoch();
  peak_flops_ = measure_peak_flops();
  if (parallel_) {
    parallel_->sum({&peak_flops_, 1});
  }
}

FineTune::~FineTune() = default;

int64_t FineTune::trainable_parameters() const {
  int64_t count = 0;
  for (const Parameter& parameter : model_->parameters()) {
    count += parameter.trainable() ? parameter.value.size() : 0;
  }
  return count;
}

std::pair<std::unique_ptr<DataParallel>, std::unique_ptr<Optimizer>> FineTune::plan_update(
    std::span<const Parameter> parameters, MemoryPlan& plan) const {
  std::unique_ptr<DataParallel> parallel;
  if (options_.ranks != nullptr && options_.ranks->size() > 1) {
    parallel = std::make_unique<DataParallel>(*options_.ranks, parameters, plan);
  }
  return {std::move(parallel),
          std::make_unique<Optimizer>(options_.optimizer, parameters, plan,
                                      parallel ? parallel->place() : RankOf())};
}

double FineTune::gradients(std::span<const PackedBatch> batches, EmbeddingNoise noise,
                           RankOf place) {
  int64_t loss_tokens = 0;
  for (const PackedBatch& batch : batches) {
    loss_tokens += batch.loss_tokens;
  }
  // Every loss-bearing token of the step weighs the same, whichever micro-batch it is in.
  const float scale = loss_tokens > 0 ? 1.0f / static_cast<float>(loss_tokens) : 0.0f;
  losses_.assign(batches.size(), 0);
  model_->zero_gradients();
  for (size_t i = 0; i < batches.size(); ++i) {
    if (batches[i].loss_tokens > 0 && place.takes(static_cast<int64_t>(i))) {
      LlamaBatch view = batch_view(batches[i]);
      view.noise = noise;
      losses_[i] = model_->loss_and_gradients(view, scale);
    }
    noise.first_token += static_cast<int64_t>(batches[i].tokens.size());
  }
  if (!place.alone()) {
    parallel_->sum(losses_);
    parallel_->reduce_gradients();
  }
  return std::accumulate(losses_.begin(), losses_.end(), 0.0) /
         static_cast<double>(std::max<int64_t>(1, loss_tokens));
}

double FineTune::mean_loss(std::span<const PackedBatch> batches) {
  double sum = 0;
  int64_t loss_tokens = 0;
  for (const PackedBatch& batch : batches) {
    sum += model_->evaluate(batch_view(batch));
    loss_tokens += batch.loss_tokens;
  }
  return sum / static_cast<double>(loss_tokens);
}

void FineTune::probe(TrainingGuards& guards) {
  const int64_t vocabulary = model_->config().vocabulary_size;
  guards.check_parameters(model_->config(), options_.lora, options_.frozen, model_->parameters());
  const int64_t leaks = probe_packing(vocabulary, [&](const PackedBatch& batch) {
    model_->evaluate(batch_view(batch));
    return model_->token_losses();
  });
  guards.check_packing(leaks);
  guards.check_gradient_probe(probe_gradients(
      vocabulary, model_->parameters(),
      [&](std::span<const PackedBatch> batches) { gradients(batches); },
      [&](std::span<const PackedBatch> batches) { return mean_loss(batches); }));
}

StepReport FineTune::step(int64_t index, TrainingGuards* guards) {
  const auto start = Clock::now();
  StepReport report = {.step = index + 1, .steps = steps_};
  const auto sent = [&] { return parallel_ ? parallel_->communicator().bytes_sent() : 0; };
  const int64_t sent_before = sent();
  stream_->next(batches_);
  const LoraOptions* lora = options_.lora ? &*options_.lora : nullptr;
  double flops = 0;
  for (const PackedBatch& batch : batches_) {
    const LlamaWork work = work_of(batch);
    report.tokens += work.tokens;
    report.loss_tokens += work.loss_tokens;
    flops += llama_training_flops(model_->config(), lora, work, options_.frozen);
  }
  report.capacity = shape_.bin_capacity * static_cast<int64_t>(batches_.size());
  report.epoch = static_cast<double>(stream_->position().epoch) +
                 static_cast<double>(stream_->position().bin) /
                     static_cast<double>(std::max<int64_t>(1, stream_->bins()));
  const auto guard = [&](auto check) {
    if (guards != nullptr) {
      const auto begin = Clock::now();
      check();
      report.guard_seconds += seconds_since(begin);
    }
  };
  guard([&] { guards->check_batches(report.step, batches_); });
  report.loss = gradients(
      batches_, {.alpha = options_.neftune_alpha, .seed = options_.seed, .step = index}, place());
  if (!std::isfinite(report.loss)) {
    fail_not_finite(report.step, "the loss");
  }
  guard([&] { guards->before_update(model_->parameters()); });
  OptimizerStep update;
  try {
    update = optimizer_->step(schedule_factor(options_.schedule, index, steps_), sum_ranks());
  } catch (const NonFiniteGradient& error) {
    fail_not_finite(report.step, error.what());
  }
  if (parallel_) {
    parallel_->gather_parameters();
  }
  model_->refresh_adapters();
  describe_gradients(report);
  guard([&] {
    guards->after_update(report.step, update.learning_rate, model_->parameters(),
                         optimizer_->gradient_norms());
    guards->check_loss(report.step, report.loss);
    report.update_ratio = guards->update_ratio();
    report.lost_updates = guards->lost_updates();
  });
  report.learning_rate = update.learning_rate;
  report.gradient_norm = update.gradient_norm;
  report.seconds = seconds_since(start);
  report.utilisation = flops / report.seconds / peak_flops_;
  report.memory_bytes = anonymous_memory_bytes();
  report.bytes_sent = sent() - sent_before;
  return report;
}

void FineTune::describe_gradients(StepReport& report) const {
  const std::span<const double> norms = optimizer_->gradient_norms();
  size_t slot = 0;
  for (const Parameter& parameter : model_->parameters()) {
    if (!parameter.trainable()) {
      continue;
    }
    const double norm = norms[slot];
    if (slot == 0 || norm > report.largest_gradient_norm) {
      report.largest_gradient_norm = norm;
      report.largest_gradient = parameter.name;
    }
    if (slot == 0 || norm < report.smallest_gradient_norm) {
      report.smallest_gradient_norm = norm;
      report.smallest_gradient = parameter.name;
    }
    ++slot;
  }
}

void FineTune::fail_not_finite(int64_t step, const std::string& what) {
  std::string place;
  for (size_t i = 0; i < batches_.size() && place.empty(); ++i) {
    if (batches_[i].loss_tokens > 0) {
      place = model_->first_non_finite(batch_view(batches_[i]));
    }
  }
  throw Error(
      fmt::format("{} is not finite in step {}, first in {}; the weights keep the values of the "
                  "step before. A smaller learning rate, a longer warm-up or f32 weights may help",
                  what, step, place.empty() ? "the gradient of a weight" : place));
}

void FineTune::log_step(MetricLog& log, const StepReport& report) {
  const double rate = 1 / report.seconds;
  log.append(
      {{"step", report.step},
       {"epoch", report.epoch},
       {"loss", report.loss},
       {"learning_rate", report.learning_rate},
       {"gradient_norm", report.gradient_norm},
       {"largest_gradient_norm", report.largest_gradient_norm},
       {"largest_gradient", std::string_view(report.largest_gradient)},
       {"smallest_gradient_norm", report.smallest_gradient_norm},
       {"smallest_gradient", std::string_view(report.smallest_gradient)},
       {"seconds", report.seconds},
       {"guard_seconds", report.guard_seconds},
       {"update_ratio", report.update_ratio},
       {"lost_updates", report.lost_updates},
       // Bins are packed without padding, so all tokens are real; `packing` is the share of
       // the bins' room that they fill.
       {"all_tokens_per_second", static_cast<double>(report.tokens) * rate},
       {"real_tokens_per_second", static_cast<double>(report.tokens) * rate},
       {"loss_tokens_per_second", static_cast<double>(report.loss_tokens) * rate},
       {"packing", static_cast<double>(report.tokens) / static_cast<double>(report.capacity)},
       {"mfu", report.utilisation},
       {"bytes_sent", report.bytes_sent},
       {"memory_bytes", report.memory_bytes}});
}

}  // namespace flashloom
