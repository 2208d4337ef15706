#pragma once

#include "flashloom/core/memory_plan.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/io/model_config.h"

namespace flashloom {

/// The rotary frequencies of a model, planned and filled once.
class LlamaRope {
 public:
  LlamaRope() = default;
  LlamaRope(const ModelConfig& config, MemoryPlan& plan);

  /// Computes them.
  void bind(const Arena& arena, const ModelConfig& config);

  ConstTensorView frequencies() const { return frequencies_; }  // (D / 2)

 private:
  MemoryPlan::Id id_ = -1;
  TensorView frequencies_;
};

}  // namespace flashloom
