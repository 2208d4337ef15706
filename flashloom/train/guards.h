#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_adapters.h"
#include "flashloom/models/llama/llama_frozen.h"
#include "flashloom/models/parameter.h"
#include "flashloom/text/packed_batches.h"
#include "flashloom/train/probes.h"

namespace flashloom {

/// A sign that a run does not train as it should.
struct GuardFinding {
  std::string guard;  // "labels", "gradients", …: each is told once a run
  int64_t step = 0;   // optimizer step, from 1; 0: before the first
  std::string what;   // is wrong
  std::string why;    // it matters
  std::string advice;

  /// All three.
  std::string text() const { return what + ". " + why + ". " + advice + "."; }
};

/// Watches a run for faults that lower no exception: a loss curve may look healthy while part of
/// the model stands still. The checks read what the step has computed anyway, and samples of the
/// weights.
class TrainingGuards {
 public:
  /// `keeps_updates`: bf16 weights may stand still without losing anything, since stochastic
  /// rounding moves them in the mean, or f32 masters do so out of sight.
  explicit TrainingGuards(std::function<void(const GuardFinding&)> report,
                          bool keeps_updates = false);

  /// Before the first step: as many numbers are trained as model and method say, a tied head once.
  void check_parameters(const ModelConfig& config, const std::optional<LoraOptions>& lora,
                        const LlamaFrozen& left_out, std::span<const Parameter> parameters);

  /// Before the first step, what the probes of probes.h found.
  void check_packing(int64_t changed_losses);
  void check_gradient_probe(const GradientProbe& probe);

  /// Before each step: labels are the tokens that follow, within their document; positions restart
  /// with each document; enough tokens bear loss.
  void check_batches(int64_t step, std::span<const PackedBatch> batches);

  /// Around an update, with gradients still in place: every tensor has a gradient and moves, by
  /// less than its own size; updates are not lost to rounding. `gradient_norms` is of each trained
  /// tensor.
  void before_update(std::span<const Parameter> parameters);
  void after_update(int64_t step, double learning_rate, std::span<const Parameter> parameters,
                    std::span<const double> gradient_norms);

  /// After each step: the loss does not leap out of its recent range.
  void check_loss(int64_t step, double loss);

  /// Of the last update: |dw| / |w| over the samples of all tensors, and the share of sampled
  /// weights with a gradient whose update rounding swallowed.
  double update_ratio() const { return update_ratio_; }

  double lost_updates() const { return lost_updates_; }

  const std::vector<GuardFinding>& findings() const { return findings_; }

  /// Tells a finding, unless one of this guard was told before.
  void report(GuardFinding finding);

 private:
  struct Sample {
    std::vector<double> values;
    int without_gradient = 0;  // steps in a row
    int still = 0;             // steps in a row
  };

  std::function<void(const GuardFinding&)> report_;
  bool keeps_updates_;
  std::set<std::string> told_;
  std::vector<GuardFinding> findings_;
  std::vector<Sample> samples_;  // of each trainable parameter
  int lossy_steps_ = 0;          // steps in a row that lost most updates
  int64_t tokens_ = 0, loss_tokens_ = 0;
  int64_t losses_ = 0;
  double loss_mean_ = 0, loss_variance_ = 0;  // moving
  double update_ratio_ = 0, lost_updates_ = 0;
};

}  // namespace flashloom
