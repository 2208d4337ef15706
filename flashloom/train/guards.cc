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

// Under stochastic rounding an update of 1/1000 ulp, as small as they come, moves 256 samples with
// a probability of a fifth a step: none of them in 50 steps only if there are no updates.
constexpr int kStochasticPatience = 50;

// Index of sample i of a tensor, spread over all of it.
int64_t place(int64_t i, int64_t size) {
  return size <= kSamples ? i : i * (size / kSamples);
}

int64_t sample_count(const TensorView& view) {
  return std::min<int64_t>(kSamples, view.size());
}

double number(const TensorView& view, int64_t i) {
  return view.dtype == DType::bf16 ? static_cast<double>(static_cast<float>(view.as<bf16>()[i]))
                                   : static_cast<double>(view.as<float>()[i]);
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

TrainingGuards::TrainingGuards(std::function<void(const GuardFinding&)> report, bool keeps_updates)
    : report_(std::move(report)), keeps_updates_(keeps_updates) {}

void TrainingGuards::report(GuardFinding finding) {
  if (!told_.insert(finding.guard).second) {
    return;
  }
  findings_.push_back(std::move(finding));
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
        {.guard = "parameters",
         .what = fmt::format("{} numbers are trained, but {} of this model has {}{}", trained,
                             lora ? "LoRA" : "full fine-tuning", expected,
                             frozen.empty() ? "" : " (frozen: " + names(frozen) + ")"),
         .why = "The rest keeps its values for the whole run, whatever the loss does",
         .advice = "Check which weights are meant to be frozen; if none are, file this as a bug"});
  }
}

void TrainingGuards::check_packing(int64_t changed_losses) {
  if (changed_losses > 0) {
    report({.guard = "packing",
            .what = fmt::format("packed documents see each other: other tokens in one changed {} "
                                "losses of others",
                                changed_losses),
            .why = "The model would learn from context that inference never has",
            .advice = "Do not train with this build: attention must stop at document borders; file "
                      "this as a bug"});
  }
}

void TrainingGuards::check_gradient_probe(const GradientProbe& probe) {
  constexpr double kNormalisation = 1e-3;  // rounding leaves 1e-6
  if (probe.normalisation_error > kNormalisation) {
    report({.guard = "normalisation",
            .what = fmt::format("the gradients of two micro-batches together are {:.2g} off the "
                                "mean over their tokens",
                                probe.normalisation_error),
            .why = "The cut into micro-batches changes what is learnt, and tokens of short answers "
                   "weigh more than others",
            .advice = "Losses must be divided by the number of loss-bearing tokens of the whole "
                      "step; file this as a bug"});
  }
  constexpr double kSlope = 0.05;  // curvature and rounding leave 0.003
  if (!(std::abs(probe.measured / probe.promised - 1) <= kSlope)) {
    report({.guard = "gradient probe",
            .what = fmt::format("a small move along the gradients changed the loss by {:.3g}, not "
                                "by the {:.3g} that they promise",
                                probe.measured, probe.promised),
            .why = "They are not the gradients of the loss, so steps along them need not lower it",
            .advice = "Do not train with this build; file this as a bug, with the model"});
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
    report({.guard = "labels",
            .step = step,
            .what = fmt::format(
                "{} of {} labels are not the token that follows within their document{}", sum.wrong,
                sum.labels,
                sum.own_token > sum.wrong / 2 ? " (they equal their own token: not shifted)" : ""),
            .why = "The model learns something else than to predict the next token",
            .advice = "Check how labels are made: each is the next token of its document"});
  }
  if (sum.wrong_positions > 0) {
    report({.guard = "positions",
            .step = step,
            .what = fmt::format("{} positions do not count from 0 in their document",
                                sum.wrong_positions),
            .why = "Rotary embeddings see distances that inference never has",
            .advice = "Check the packing: positions restart with each document"});
  }
  if (sum.labels == 0) {
    report({.guard = "loss tokens",
            .step = step,
            .what = fmt::format("none of the step's {} tokens bears loss", tokens),
            .why = "It trains nothing",
            .advice = "Look at --preview: the template may mask the answers, or --seq-len cut them "
                      "off"});
  }
  tokens_ += tokens;
  loss_tokens_ += sum.labels;
  constexpr int64_t kSteps = 10;
  constexpr double kFew = 0.005;
  const double share = static_cast<double>(loss_tokens_) / static_cast<double>(tokens_);
  if (step >= kSteps && share < kFew) {
    report({.guard = "loss tokens",
            .step = step,
            .what = fmt::format("only {:.2f} % of the tokens bear loss", 100 * share),
            .why = "Nearly all of the time goes into prompts",
            .advice = "Look at --preview whether the right part is masked"});
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
    std::vector<double>& values = samples_[slot++].values;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = number(parameter.value, place(static_cast<int64_t>(i), parameter.value.size()));
    }
  }
}

void TrainingGuards::after_update(int64_t step, double learning_rate,
                                  std::span<const Parameter> parameters,
                                  std::span<const double> gradient_norms) {
  std::vector<std::string> without_gradient, still, leaping;
  int64_t with_gradient = 0, lost = 0, gradients = 0;
  double moved_squares = 0, squares = 0;
  size_t slot = 0;
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable()) {
      continue;
    }
    const bool any = gradient_norms[slot] > 0;
    Sample& sample = samples_[slot++];
    const bool coarse = parameter.value.dtype == DType::bf16;
    double delta_squares = 0, value_squares = 0;
    for (size_t i = 0; i < sample.values.size(); ++i) {
      const int64_t index = place(static_cast<int64_t>(i), parameter.value.size());
      const double delta = number(parameter.value, index) - sample.values[i];
      delta_squares += delta * delta;
      value_squares += sample.values[i] * sample.values[i];
      // Rows of an embedding that no token of the step has are rightly without a gradient.
      if (number(parameter.gradient, index) != 0) {
        ++with_gradient;
        lost += delta == 0 && !(coarse && keeps_updates_) ? 1 : 0;
      }
    }
    moved_squares += delta_squares;
    squares += value_squares;
    gradients += any ? 1 : 0;
    sample.without_gradient = any ? 0 : sample.without_gradient + 1;
    sample.still = delta_squares > 0 || learning_rate == 0 ? 0 : sample.still + 1;
    if (sample.without_gradient >= kPatience) {
      without_gradient.push_back(parameter.name);
    } else if (sample.still >= (coarse && keeps_updates_ ? kStochasticPatience : kPatience)) {
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
    report({.guard = "gradients",
            .step = step,
            .what = "every gradient is zero",
            .why = "The step trained nothing, and the next will not either",
            .advice = "Check that the loss depends on the trained weights and that labels are not "
                      "all masked"});
  } else if (!without_gradient.empty()) {
    report(
        {.guard = "gradients",
         .step = step,
         .what = fmt::format("no gradient for {} steps in {}", kPatience, names(without_gradient)),
         .why = "These weights keep their values while the rest trains",
         .advice = "Check that the loss depends on them"});
  }
  if (!still.empty()) {
    report({.guard = "updates",
            .step = step,
            .what = fmt::format("{} did not move for {} steps although there are gradients",
                                names(still), keeps_updates_ ? kStochasticPatience : kPatience),
            .why = "The learning rate is too small for the precision of the weights, or the "
                   "optimizer leaves them out, and they learn nothing",
            .advice = "Raise --lr or keep f32 weights; if that does not help, file this as a bug"});
  }
  if (!leaping.empty()) {
    report({.guard = "leaps",
            .step = step,
            .what = fmt::format("an update was larger than the weights themselves in {}",
                                names(leaping)),
            .why = "What the model knew there is lost",
            .advice = "Lower --lr or warm up longer"});
  }
  constexpr double kMost = 0.5;
  lossy_steps_ = lost_updates_ > kMost && learning_rate > 0 ? lossy_steps_ + 1 : 0;
  if (lossy_steps_ >= kPatience) {
    report(
        {.guard = "rounding",
         .step = step,
         .what = fmt::format("{:.0f} % of the updates were lost to rounding", 100 * lost_updates_),
         .why = "The weights are too coarse for steps this small, and training stalls",
         .advice = "Use --bf16-updates stochastic or master, keep f32 weights, or raise --lr"});
  }
}

void TrainingGuards::check_loss(int64_t step, double loss) {
  constexpr int64_t kWarm = 16;
  constexpr double kMemory = 1.0 / 32;
  constexpr double kDeviations = 8;
  constexpr double kFactor = 1.5;
  if (losses_ >= kWarm && loss > kFactor * loss_mean_ &&
      loss > loss_mean_ + kDeviations * std::sqrt(loss_variance_)) {
    report({.guard = "loss spike",
            .step = step,
            .what = fmt::format("the loss leapt to {:.3f} from about {:.3f}", loss, loss_mean_),
            .why = "One bad batch does no harm, but a loss that stays there means that the weights "
                   "were damaged",
            .advice =
                "If it stays, go back to a checkpoint with a lower learning rate, and look at "
                "the rows of this step"});
  }
  ++losses_;
  const double weight = std::max(kMemory, 1.0 / static_cast<double>(losses_));
  const double delta = loss - loss_mean_;
  loss_mean_ += weight * delta;
  loss_variance_ = (1 - weight) * (loss_variance_ + weight * delta * delta);
}

}  // namespace flashloom
