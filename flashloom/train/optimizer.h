#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "flashloom/core/memory_plan.h"
#include "flashloom/models/parameter.h"
#include "flashloom/ops/adamw_8bit/adamw_8bit.h"
#include "flashloom/train/parallel/shards.h"
#include "flashloom/train/state_tensor.h"

namespace flashloom {

/// How AdamW's m and v are stored.
enum class OptimizerMoments : uint8_t {
  f32,   // 8 bytes a trained number
  bits8  // 2.03, see ops/adamw_8bit; tensors of less than 4,096 numbers keep f32
};

/// How weights that are stored as bf16 take an update.
enum class Bf16Updates : uint8_t {
  stochastic,  // rounded at random: right in the mean, no memory
  master,      // exact numbers are kept beside them in f32: 4 bytes more a number
  nearest,     // updates below half an ulp are lost; for comparison
};

/// "adamw", "adamw8bit"; "stochastic", "master", "nearest".
std::string_view optimizer_name(OptimizerMoments moments);
std::string_view bf16_updates_name(Bf16Updates updates);

/// Throw InvalidArgument for any other name.
OptimizerMoments parse_optimizer(std::string_view name);
Bf16Updates parse_bf16_updates(std::string_view name);

struct OptimizerOptions {
  double learning_rate = 2e-4;
  double adapter_b_ratio = 16;  // LoRA+: the learning rate of B over that of A
  double weight_decay = 0;      // of matrices and adapters; vectors and embeddings take none
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double clip_norm = 1;  // global norm of the gradient; 0: no clipping
  OptimizerMoments moments = OptimizerMoments::f32;
  Bf16Updates bf16_updates = Bf16Updates::stochastic;
  uint64_t seed = 0;  // of stochastic rounding
};

/// What one update did.
struct OptimizerStep {
  double gradient_norm = 0;  // before clipping
  float clip = 1;            // factor that was applied
  double learning_rate = 0;
};

/// AdamW over the trainable parameters of a model, clipped by global norm. Its state is planned
/// with everything else. Random numbers of stochastic rounding are functions of (seed; update,
/// place among all trained numbers), so an update is the same for any number of threads and after a
/// resume.
///
/// One of several ranks keeps the state of its range (parallel/shards.h) and updates that alone, to
/// the same bits as one rank would from the same gradients.
class Optimizer {
 public:
  /// The parameters need shapes only, as a model has them before there is memory.
  Optimizer(const OptimizerOptions& options, std::span<const Parameter> parameters,
            MemoryPlan& plan, RankOf place = {});

  /// The same parameters with their memory, which holds the values to start from. Throws
  /// InvalidArgument if they are not those of the constructor.
  void bind(const Arena& arena, std::span<const Parameter> parameters);

  /// One update with learning rates times `factor` (the schedule's). A gradient that is not finite
  /// throws NonFiniteGradient naming the parameter, and changes nothing. `sum_ranks` adds numbers
  /// up over all ranks, in place: with it, norms are of all ranges, and every rank throws together.
  OptimizerStep step(double factor, const std::function<void(std::span<double>)>& sum_ranks = {});

  /// Of the last step: the norm of the gradient of each trained parameter, in their order.
  std::span<const double> gradient_norms() const { return gradient_norms_; }

  /// The state to keep, with the number of updates so far.
  std::vector<StateTensor> state() const;

  int64_t steps() const { return steps_; }

  /// After state() was filled from a checkpoint.
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  struct Moment {
    MemoryPlan::Id values = -1;  // f32, or codes
    MemoryPlan::Id scales = -1;  // with codes
  };

  struct Slot {
    Parameter parameter;
    TensorPart part;       // of its numbers that this rank updates
    int64_t position = 0;  // of the part's first number among all that are trained
    Moment m_ids, v_ids;
    MemoryPlan::Id master_id = -1;
    QuantizedMoment m, v;  // f32 in `codes`, without scales, if they are not quantised
    TensorView master;     // absent unless kept

    TensorView of_part(const TensorView& whole) const;
  };

  void update(const Slot& slot, const OptimizerStep& report) const;

  OptimizerOptions options_;
  bool divided_ = false;  // among ranks
  std::vector<Slot> slots_;
  std::vector<double> gradient_norms_;
  int64_t steps_ = 0;
};

}  // namespace flashloom
