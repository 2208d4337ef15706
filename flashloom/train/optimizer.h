#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flashloom/core/memory_plan.h"
#include "flashloom/models/parameter.h"
#include "flashloom/train/state_tensor.h"

namespace flashloom {

struct OptimizerOptions {
  double learning_rate = 2e-4;
  double adapter_b_ratio = 16;  // LoRA+: the learning rate of B over that of A
  double weight_decay = 0;      // of matrices and adapters; vectors and embeddings take none
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double clip_norm = 1;  // global norm of the gradient; 0: no clipping
};

/// What one update did.
struct OptimizerStep {
  double gradient_norm = 0;  // before clipping
  float clip = 1;            // factor that was applied
  double learning_rate = 0;
};

/// AdamW over the trainable parameters of a model, clipped by global norm. Its state, m and v, is
/// planned with everything else.
class Optimizer {
 public:
  /// `elements` is the number of trainable numbers.
  Optimizer(const OptimizerOptions& options, int64_t elements, MemoryPlan& plan);

  /// Throws InvalidArgument if the trainable parameters are not `elements` numbers.
  void bind(const Arena& arena, std::span<const Parameter> parameters);

  /// One update with learning rates times `factor` (the schedule's). A gradient that is not finite
  /// throws Error naming the parameter, and changes nothing.
  OptimizerStep step(double factor);

  /// The state to keep, m and v of each parameter, with the number of updates so far.
  std::vector<StateTensor> state() const;

  int64_t steps() const { return steps_; }

  /// After state() was filled from a checkpoint.
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  struct Slot {
    Parameter parameter;
    TensorView m, v;
  };

  OptimizerOptions options_;
  int64_t elements_;
  MemoryPlan::Id m_, v_;
  std::vector<Slot> slots_;
  int64_t steps_ = 0;
};

}  // namespace flashloom
