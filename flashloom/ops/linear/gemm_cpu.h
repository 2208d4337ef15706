#pragma once

#include "flashloom/ops/linear/gemm.h"

namespace flashloom {

/// gemm_sum() on the CPU, without checks.
void gemm_sum_cpu(TensorView c, std::span<const GemmTerm> terms, float beta, ConstTensorView bias);

}  // namespace flashloom
