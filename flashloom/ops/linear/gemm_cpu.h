#pragma once

#include "flashloom/ops/linear/gemm.h"

namespace flashloom {

/// gemm() on the CPU, without checks.
void gemm_cpu(TensorView c, ConstTensorView a, ConstTensorView b, const GemmOptions& options);

}  // namespace flashloom
