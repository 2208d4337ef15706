// A run over its output directory: evaluation, checkpoints, and going on from one.
#include <fmt/format.h>

#include <chrono>
#include <filesystem>

#include "flashloom/core/check.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/checksum.h"
#include "flashloom/train/adapter_files.h"
#include "flashloom/train/export.h"
#include "flashloom/train/fine_tune.h"
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
  return sum.hex();
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
  }
  return shape;
}

void FineTune::open_run(const TokenDocuments& train, bool recorded) {
  model_sum_ = weights_checksum(*model_);
  data_sum_ = documents_checksum(train);
  held_out_sum_ = held_out_ != nullptr ? documents_checksum(*held_out_) : "none";
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
                                  {"method", std::string_view(options_.lora ? "lora" : "full")},
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
  const std::optional<TrainingState> state =
      CheckpointFolders(options_.output).read_newest(state_tensors(), observer.damaged);
  cut_metric_log(log_path(), state ? state->step : -1);
  if (!state) {
    return {};
  }
  check(state->step <= steps_, "finetune", "steps",
        fmt::format("at least the {} that {} has taken", state->step, options_.output),
        fmt::format("{}", steps_));
  optimizer_->set_steps(state->step);
  stream_->seek(state->data);
  if (observer.resumed) {
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
  MetricLog log(log_path());
  const CheckpointFolders checkpoints(options_.output);

  const auto evaluate = [&] {
    const EvaluationResult held_out =
        evaluate_documents(*model_, *held_out_, model_->options().max_tokens);
    log.append(
        {{"step", state.step}, {"eval_loss", held_out.loss}, {"eval_tokens", held_out.tokens}});
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
        state, state_tensors(), [&](const std::string& directory) { save_model(directory); });
    result.checkpoint_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
    ++result.checkpoints;
    if (observer.saved) {
      observer.saved(folder);
    }
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
  while (state.step < steps_ && !result.stopped) {
    const StepReport report = step(state.step, options_.guards ? &guards : nullptr);
    ++state.step;
    state.tokens += report.tokens;
    log_step(log, report);
    if (observer.stepped) {
      observer.stepped(report);
    }
    const bool last = state.step == steps_;
    result.stopped = !last && observer.stop && observer.stop();
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
    checkpoint();
  }
  return result;
}

}  // namespace flashloom
