#include "flashloom/train/guards.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "flashloom/core/labels.h"
#include "flashloom/models/llama/llama.h"

namespace flashloom {
namespace {

// Enough that a tensor which moves at all is seen to move, few enough to cost nothing.
constexpr int64_t kSamples = 256;

// A LoRA A has no gradient in the first step, since B is zero. Later, none in one step may be an
// underflow; three in a row are not.
constexpr int kPatience = 3;

// Index of sample i of a tensor, spread over all of it.
int64_t place(int64_t i, int64_t size) {
  return size <= kSamples ? i : i * (size / kSamples);
}

int64_t sample_count(const TensorView& view) {
  return std::min<int64_t>(kSamples, view.size());
}

bool has_gradient(const TensorView& gradient) {
  const auto* values = gradient.as<float>();
  return std::any_of(values, values + gradient.size(), [](float value) { return value != 0; });
}

std::string names(const std::vector<std::string>& list) {
  constexpr size_t kShown = 3;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, list.size()); ++i) {
    text += (i > 0 ? ", " : "") + list[i];
  }
  return list.size() <= kShown ? text : fmt::format("{} and {} more", text, list.size() - kShown);
}

struct LabelCounts {
  int64_t labels = 0, wrong = 0, own_token = 0, wrong_positions = 0;
};

LabelCounts count_labels(const PackedBatch& batch) {
  LabelCounts counts;
  for (size_t d = 0; d + 1 < batch.cu_seqlens.size(); ++d) {
    const auto begin = static_cast<size_t>(batch.cu_seqlens[d]);
    const auto end = static_cast<size_t>(batch.cu_seqlens[d + 1]);
    for (size_t t = begin; t < end; ++t) {
      counts.wrong_positions += batch.positions[t] != static_cast<int32_t>(t - begin) ? 1 : 0;
      if (batch.labels[t] == kIgnoredLabel) {
        continue;
      }
      ++counts.labels;
      const bool follows = t + 1 < end && batch.labels[t] == batch.tokens[t + 1];
      counts.wrong += follows ? 0 : 1;
      counts.own_token += !follows && batch.labels[t] == batch.tokens[t] ? 1 : 0;
    }
  }
  return counts;
}

}  // namespace

TrainingGuards::TrainingGuards(std::function<void(const GuardFinding&)> report)
    : report_(std::move(report)) {}

void TrainingGuards::report(std::string guard, int64_t step, std::string what) {
  if (!told_.insert(guard).second) {
    return;
  }
  findings_.push_back({std::move(guard), step, std::move(what)});
  if (report_) {
    report_(findings_.back());
  }
}

void TrainingGuards::check_parameters(const ModelConfig& config,
                                      const std::optional<LoraOptions>& lora,
                                      const LlamaFrozen& left_out,
                                      std::span<const Parameter> parameters) {
  int64_t trained = 0;
  std::vector<std::string> frozen;
  for (const Parameter& parameter : parameters) {
    const bool adapter = is_adapter(parameter.role);
    if (parameter.trainable()) {
      trained += parameter.value.size();
    } else if (adapter == lora.has_value()) {
      frozen.push_back(parameter.name);
    }
  }
  const int64_t expected = llama_trainable_size(config, lora, left_out);
  if (trained != expected) {
    report(
        "parameters", 0,
        fmt::format("{} numbers are trained, but {} of this model has {}{}. The rest would keep "
                    "its values for the whole run; train with the built-in methods, or file this "
                    "as a bug.",
                    trained, lora ? "LoRA" : "full fine-tuning", expected,
                    frozen.empty() ? "" : " (frozen: " + names(frozen) + ")"));
  }
}

void TrainingGuards::check_packing(int64_t changed_losses) {
  if (changed_losses > 0) {
    report("packing", 0,
           fmt::format("packed documents see each other: other tokens in one changed {} losses of "
                       "others. The model would learn from context that inference never has.",
                       changed_losses));
  }
}

void TrainingGuards::check_gradient_probe(const GradientProbe& probe) {
  constexpr double kNormalisation = 1e-3;  // rounding leaves 1e-6
  if (probe.normalisation_error > kNormalisation) {
    report("normalisation", 0,
           fmt::format("the gradients of two micro-batches together are {:.2g} off the mean over "
                       "their tokens. Losses must be divided by the number of loss-bearing tokens "
                       "of the whole step, or the cut into micro-batches changes what is learnt.",
                       probe.normalisation_error));
  }
  constexpr double kSlope = 0.05;  // curvature and rounding leave 0.003
  if (!(std::abs(probe.measured / probe.promised - 1) <= kSlope)) {
    report("gradient probe", 0,
           fmt::format("a small move along the gradients changed the loss by {:.3g}, not by the "
                       "{:.3g} that they promise: they are not the loss's gradients.",
                       probe.measured, probe.promised));
  }
}

void TrainingGuards::check_batches(int64_t step, std::span<const PackedBatch> batches) {
  LabelCounts sum;
  int64_t tokens = 0;
  for (const PackedBatch& batch : batches) {
    const LabelCounts counts = count_labels(batch);
    sum.labels += counts.labels;
    sum.wrong += counts.wrong;
    sum.own_token += counts.own_token;
    sum.wrong_positions += counts.wrong_positions;
    tokens += static_cast<int64_t>(batch.tokens.size());
  }
  if (sum.wrong > 0) {
    report("labels", step,
           fmt::format(
               "{} of {} labels are not the token that follows within their document{}. The "
               "model would learn something else than to predict the next token; check how "
               "labels are made.",
               sum.wrong, sum.labels,
               sum.own_token > sum.wrong / 2 ? " (they equal their own token: not shifted)" : ""));
  }
  if (sum.wrong_positions > 0) {
    report(
        "positions", step,
        fmt::format("{} positions do not count from 0 in their document. Rotary embeddings would "
                    "see distances that inference never has; check the packing.",
                    sum.wrong_positions));
  }
  if (sum.labels == 0) {
    report("loss tokens", step,
           fmt::format("none of the step's {} tokens bears loss, so it trains nothing. Look at "
                       "--preview: the template may mask the answers, or --seq-len cut them off.",
                       tokens));
  }
  tokens_ += tokens;
  loss_tokens_ += sum.labels;
  constexpr int64_t kSteps = 10;
  constexpr double kFew = 0.005;
  const double share = static_cast<double>(loss_tokens_) / static_cast<double>(tokens_);
  if (step >= kSteps && share < kFew) {
    report("loss tokens", step,
           fmt::format("only {:.2f} % of the tokens bear loss. Nearly all of the time goes into "
                       "prompts; look at --preview whether the right part is masked.",
                       100 * share));
  }
}

void TrainingGuards::before_update(std::span<const Parameter> parameters) {
  size_t slot = 0;
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable()) {
      continue;
    }
    if (slot == samples_.size()) {
      samples_.emplace_back();
      samples_.back().values.resize(static_cast<size_t>(sample_count(parameter.value)));
    }
    std::vector<float>& values = samples_[slot++].values;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] =
          parameter.value.as<float>()[place(static_cast<int64_t>(i), parameter.value.size())];
    }
  }
}

void TrainingGuards::after_update(int64_t step, double learning_rate,
                                  std::span<const Parameter> parameters) {
  std::vector<std::string> without_gradient, still, leaping;
  int64_t with_gradient = 0, lost = 0, gradients = 0;
  double moved_squares = 0, squares = 0;
  size_t slot = 0;
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable()) {
      continue;
    }
    Sample& sample = samples_[slot++];
    double delta_squares = 0, value_squares = 0;
    bool any = false;
    for (size_t i = 0; i < sample.values.size(); ++i) {
      const int64_t index = place(static_cast<int64_t>(i), parameter.value.size());
      const double delta =
          static_cast<double>(parameter.value.as<float>()[index]) - sample.values[i];
      delta_squares += delta * delta;
      value_squares += static_cast<double>(sample.values[i]) * sample.values[i];
      if (parameter.gradient.as<float>()[index] != 0) {
        any = true;
        ++with_gradient;
        lost += delta == 0 ? 1 : 0;
      }
    }
    moved_squares += delta_squares;
    squares += value_squares;
    // Rows of an embedding that no token of the step has are rightly without one.
    any = any || has_gradient(parameter.gradient);
    gradients += any ? 1 : 0;
    sample.without_gradient = any ? 0 : sample.without_gradient + 1;
    sample.still = delta_squares > 0 || learning_rate == 0 ? 0 : sample.still + 1;
    if (sample.without_gradient >= kPatience) {
      without_gradient.push_back(parameter.name);
    } else if (sample.still >= kPatience) {
      still.push_back(parameter.name);
    }
    // A LoRA B starts from zero, so any update is larger than it.
    if (parameter.role != ParameterRole::adapter_b && delta_squares > value_squares) {
      leaping.push_back(parameter.name);
    }
  }
  update_ratio_ = squares > 0 ? std::sqrt(moved_squares / squares) : 0;
  lost_updates_ =
      with_gradient > 0 ? static_cast<double>(lost) / static_cast<double>(with_gradient) : 0;
  if (gradients == 0) {
    report(
        "gradients", step,
        "every gradient is zero, so the step trained nothing. Check that the loss depends on the "
        "trained weights and that labels are not all masked.");
  } else if (!without_gradient.empty()) {
    report("gradients", step,
           fmt::format("no gradient for {} steps in {}. These weights keep their values while the "
                       "rest trains; check that the loss depends on them.",
                       kPatience, names(without_gradient)));
  }
  if (!still.empty()) {
    report(
        "updates", step,
        fmt::format("{} did not move for {} steps although it has gradients. The learning rate "
                    "is too small for the precision of the weights, or the optimizer leaves them "
                    "out.",
                    names(still), kPatience));
  }
  if (!leaping.empty()) {
    report(
        "leaps", step,
        fmt::format("an update was larger than the weights themselves in {}. What the model knew "
                    "is lost; lower the learning rate or warm up longer.",
                    names(leaping)));
  }
  constexpr double kMost = 0.5;
  lossy_steps_ = lost_updates_ > kMost && learning_rate > 0 ? lossy_steps_ + 1 : 0;
  if (lossy_steps_ >= kPatience) {
    report("rounding", step,
           fmt::format("{:.0f} % of the updates were lost to rounding: the weights are too coarse "
                       "for steps this small, and training stalls. Keep f32 weights or use "
                       "stochastic rounding, or raise the learning rate.",
                       100 * lost_updates_));
  }
}

void TrainingGuards::check_loss(int64_t step, double loss) {
  constexpr int64_t kWarm = 16;
  constexpr double kMemory = 1.0 / 32;
  constexpr double kDeviations = 8;
  constexpr double kFactor = 1.5;
  if (losses_ >= kWarm && loss > kFactor * loss_mean_ &&
      loss > loss_mean_ + kDeviations * std::sqrt(loss_variance_)) {
    report("loss spike", step,
           fmt::format("the loss leapt to {:.3f} from about {:.3f}. One bad batch does no harm; if "
                       "it stays there, go back to a checkpoint with a lower learning rate.",
                       loss, loss_mean_));
  }
  ++losses_;
  const double weight = std::max(kMemory, 1.0 / static_cast<double>(losses_));
  const double delta = loss - loss_mean_;
  loss_mean_ += weight * delta;
  loss_variance_ = (1 - weight) * (loss_variance_ + weight * delta * delta);
}

}  // namespace flashloom
