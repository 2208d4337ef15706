#pragma once

#include "flashloom/ops/adamw/adamw.h"

namespace flashloom::detail {

// The options as PyTorch rounds them: each scalar is formed in float64, then rounded to f32.
struct AdamwFactors {
  float gradient_scale;
  float decay;         // 1 - lr wd
  float m_weight;      // 1 - beta1
  float v_decay;       // beta2
  float v_weight;      // 1 - beta2
  float v_correction;  // sqrt(1 - beta2^step)
  float epsilon;
  float step_size;  // -lr / (1 - beta1^step)
};

AdamwFactors adamw_factors(const AdamwOptions& options);

// The contract of adamw.h for checked arguments in CPU memory.
void adamw_cpu(const TensorView& parameter, float* m, float* v, const float* gradient,
               const AdamwOptions& options);

}  // namespace flashloom::detail
