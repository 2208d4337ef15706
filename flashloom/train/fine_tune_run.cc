// A run over its output directory: evaluation, checkpoints, and going on from one.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/process_memory.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/checksum.h"
#include "flashloom/train/adapter_files.h"
#include "flashloom/train/export.h"
#include "flashloom/train/fine_tune.h"
#include "flashloom/train/parallel/state_exchange.h"
#include "flashloom/train/report/run_facts.h"
#include "flashloom/train/run_record.h"

namespace flashloom {
namespace {

namespace fs = std::filesystem;

std::string weights_checksum(const LlamaModel& model) {
  Checksum sum;
  for (const Parameter& parameter : model.parameters()) {
    if (!is_adapter(parameter.role)) {
      const TensorView& value = parameter.value;
      sum.add({static_cast<const std::byte*>(value.data), static_cast<size_t>(value.bytes())});
    }
  }
  for (const LlamaLayerWeights& layer : model.weights().values().layers) {
    for (const BlockMatrix& blocks : layer.blocks) {
      if (blocks) {
        sum.add({blocks.data, static_cast<size_t>(blocks.bytes())});
      }
    }
  }
  return sum.hex();
}

// "lora", "dora", "qlora", "qdora", "full"
std::string_view method_name(const FineTuneOptions& options) {
  if (!options.lora) {
    return "full";
  }
  return options.lora->dora ? (options.quantized_base ? "qdora" : "dora")
                            : (options.quantized_base ? "qlora" : "lora");
}

}  // namespace

std::optional<StepShape> FineTune::open_output() {
  const std::string& output = options_.output;
  check(!output.empty(), "finetune", "output", "a directory", "nothing");
  make_directory(output);
  lock_.emplace(output);
  std::optional<StepShape> shape;
  if (options_.resume) {
    shape = recorded_shape(output);
  }
  if (!shape) {
    CheckpointFolders(output).clear();
    fs::remove(log_path());
    fs::remove(output + "/facts.json");
    fs::remove(output + "/report.html");
  }
  return shape;
}

void FineTune::open_run(const TokenDocuments& train, bool recorded) {
  model_sum_ = weights_checksum(*model_);
  data_sum_ = documents_checksum(train);
  held_out_sum_ = held_out_ != nullptr ? documents_checksum(*held_out_) : "none";
  if (parallel_) {
    require_same(parallel_->communicator(), "model", model_sum_);
    require_same(parallel_->communicator(), "training data", data_sum_);
    require_same(parallel_->communicator(), "held-out data", held_out_sum_);
  }
  if (!writes()) {
    return;
  }
  if (recorded) {
    require_same_settings(options_.output, settings());
  } else {
    write_run_record(options_.output, {.settings = settings(), .shape = shape_});
  }
}

std::vector<Metric> FineTune::settings() const {
  const OptimizerOptions& optimizer = options_.optimizer;
  std::vector<Metric> settings = {{"model", model_sum_},
                                  {"data", data_sum_},
                                  {"eval_data", held_out_sum_},
                                  {"method", method_name(options_)},
                                  {"optimizer", optimizer_name(optimizer.moments)},
                                  {"weight_dtype", dtype_name(options_.weight_dtype)},
                                  {"bf16_updates", bf16_updates_name(optimizer.bf16_updates)},
                                  {"learning_rate", optimizer.learning_rate},
                                  {"weight_decay", optimizer.weight_decay},
                                  {"clip", optimizer.clip_norm},
                                  {"schedule", schedule_name(options_.schedule.kind)},
                                  {"warmup", options_.schedule.warmup},
                                  {"minimum_rate", options_.schedule.minimum},
                                  {"wsd_decay", options_.schedule.decay},
                                  {"neftune", options_.neftune_alpha},
                                  {"freeze", std::string_view(frozen_name_)},
                                  {"batch_tokens", options_.batch_tokens},
                                  {"seed", static_cast<int64_t>(options_.seed)}};
  if (options_.lora) {
    settings.push_back({"lora_plus", optimizer.adapter_b_ratio});
    settings.push_back({"lora_rank", options_.lora->rank});
    settings.push_back({"lora_alpha", options_.lora->alpha});
    settings.push_back({"rslora", options_.lora->rank_stabilized});
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      settings.push_back(
          {llama_linear_name(static_cast<LlamaLinear>(i)), options_.lora->targets[i]});
    }
  }
  for (const auto& [name, value] : options_.data_settings) {
    settings.push_back({name, std::string_view(value)});
  }
  return settings;
}

RunFacts FineTune::facts() const {
  const ModelConfig& config = model_->config();
  RunFacts facts = {
      .program = options_.report.program,
      .model_path = bundle_.path,
      .architecture = config.architecture,
      .parameters = parameter_count(config),
      .trained_parameters = trainable_parameters(),
      .layers = config.layers,
      .hidden_size = config.hidden_size,
      .vocabulary_size = config.vocabulary_size,
      .length_bin =
          length_bin(std::max(train_.longest(), held_out_ != nullptr ? held_out_->longest() : 0)),
      .steps = steps_,
      .choices = {{"recompute", std::string(llama_recompute_name(options_.recompute))},
                  {"eval_steps", fmt::format("{}", options_.eval_steps)},
                  {"save_steps", fmt::format("{}", options_.save_steps)},
                  {"guards", options_.guards ? "on" : "off"},
                  {"micro_batch", fmt::format("{} tokens", shape_.bin_capacity)},
                  {"micro_batches", fmt::format("{} a step", shape_.bins_per_step)}},
      .memory = plan_.rows(),
      .planned_bytes = plan_.total_bytes(),
      .budget_bytes = memory_budget_,
      .processor = processor_name(),
      .threads = thread_count()};
  facts.train = data_facts(train_, facts.length_bin);
  facts.train.files = options_.report.data_files;
  facts.train.rows = options_.report.data_rows;
  if (held_out_ != nullptr) {
    facts.held_out = data_facts(*held_out_, facts.length_bin);
    facts.held_out->files = options_.report.held_out_files;
    facts.held_out->rows = options_.report.held_out_rows;
  }
  return facts;
}

std::vector<StateTensor> FineTune::state_tensors() const {
  std::vector<StateTensor> tensors = optimizer_->state();
  for (const Parameter& parameter : model_->parameters()) {
    if (parameter.trainable()) {
      tensors.push_back({parameter.name, parameter.value});
    }
  }
  return tensors;
}

void FineTune::save_model(const std::string& directory) const {
  make_directory(directory);
  if (options_.lora) {
    save_tokenizer(directory, bundle_.tokenizer);
    save_adapter(directory, *model_, bundle_.path);
  } else {
    save_hugging_face(directory, *model_, bundle_.tokenizer, options_.save_dtype);
  }
}

TrainingState FineTune::resume(const FineTuneObserver& observer) {
  const std::optional<TrainingState> state = read_state(observer);
  if (writes()) {
    cut_metric_log(log_path(), state ? state->step : -1);
  }
  if (!state) {
    return {};
  }
  check(state->step <= steps_, "finetune", "steps",
        fmt::format("at least the {} that {} has taken", state->step, options_.output),
        fmt::format("{}", steps_));
  optimizer_->set_steps(state->step);
  model_->refresh_adapters();
  stream_->seek(state->data);
  if (writes() && observer.resumed) {
    observer.resumed(state->step);
  }
  return *state;
}

FineTuneResult FineTune::run(const FineTuneObserver& observer) {
  using Clock = std::chrono::steady_clock;
  FineTuneResult result = {.state = resume(observer)};
  TrainingState& state = result.state;
  // The checkpoint of the last step is written last of all, so it says that nothing is left to do.
  if (state.step == steps_) {
    return result;
  }
  const double seconds_before = state.seconds;
  const auto start = Clock::now();
  if (!writes()) {
    follow(result, observer);
    return result;
  }
  MetricLog log(log_path());
  RunJournal journal(options_.output, facts(), state.step, options_.report);
  const CheckpointFolders checkpoints(options_.output);
  std::optional<StateExchange> exchange;
  if (parallel_) {
    exchange.emplace(parallel_->communicator());
  }

  const auto evaluate = [&] {
    const EvaluationResult held_out =
        evaluate_documents(*model_, *held_out_, model_->options().max_tokens, place(), sum_ranks());
    log.append(
        {{"step", state.step}, {"eval_loss", held_out.loss}, {"eval_tokens", held_out.tokens}});
    journal.evaluated(state.step, held_out.loss, anonymous_memory_bytes());
    if (observer.evaluated) {
      observer.evaluated(state.step, held_out);
    }
    if (state.step == 0) {
      state.before = held_out;
    } else if (!state.best || held_out.loss < state.best->loss) {
      state.best = held_out;
      state.best_step = state.step;
      save_model(options_.output + "/best");
    }
    result.after = held_out;
  };
  const auto checkpoint = [&] {
    state.data = stream_->position();
    state.seconds = seconds_before + std::chrono::duration<double>(Clock::now() - start).count();
    const auto begin = Clock::now();
    const std::string folder = checkpoints.write(
        state, state_tensors(), [&](const std::string& directory) { save_model(directory); },
        exchange ? &*exchange : nullptr);
    result.checkpoint_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
    ++result.checkpoints;
    if (observer.saved) {
      observer.saved(folder);
    }
  };
  const auto answer = [&](RunJournal::When when) {
    journal.answer(when, *model_, bundle_.tokenizer, held_out_ != nullptr ? *held_out_ : train_,
                   memory_budget_ - plan_.total_bytes(), observer.stop);
  };
  const auto due = [&](int64_t every) { return every > 0 && state.step % every == 0; };

  TrainingGuards guards(
      [&](const GuardFinding& finding) {
        log.append({{"step", finding.step},
                    {"guard", std::string_view(finding.guard)},
                    {"finding", std::string_view(finding.text())}});
        if (observer.guarded) {
          observer.guarded(finding);
        }
      },
      options_.optimizer.bf16_updates != Bf16Updates::nearest);
  if (options_.guards) {
    probe(guards);
  }
  if (held_out_ != nullptr && state.step == 0) {
    evaluate();
  }
  if (state.step == 0) {
    answer(RunJournal::When::before);
  }
  while (state.step < steps_ && !result.stopped) {
    const StepReport report = step(state.step, options_.guards ? &guards : nullptr);
    ++state.step;
    state.tokens += report.tokens;
    log_step(log, report);
    const double rate = 1 / report.seconds;
    journal.stepped({.step = report.step,
                     .loss = report.loss,
                     .learning_rate = report.learning_rate,
                     .gradient_norm = report.gradient_norm,
                     .all_tokens_per_second = static_cast<double>(report.tokens) * rate,
                     .real_tokens_per_second = static_cast<double>(report.tokens) * rate,
                     .loss_tokens_per_second = static_cast<double>(report.loss_tokens) * rate,
                     .utilisation = report.utilisation,
                     .memory_bytes = report.memory_bytes});
    if (observer.stepped) {
      observer.stepped(report);
    }
    const bool last = state.step == steps_;
    result.stopped = stop_asked(observer) && !last;
    if (held_out_ != nullptr && (last || due(options_.eval_steps))) {
      evaluate();
    }
    if (!last && (result.stopped || due(options_.save_steps))) {
      checkpoint();
    }
  }
  save_model(options_.output);
  if (observer.saved) {
    observer.saved(options_.output);
  }
  if (!result.stopped) {
    answer(RunJournal::When::after);
    checkpoint();
  }
  journal.finish(result.stopped ? "stopped" : "finished");
  return result;
}

}  // namespace flashloom
