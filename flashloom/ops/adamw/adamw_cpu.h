#pragma once

#include "flashloom/ops/adamw/adamw.h"

namespace flashloom::detail {

// The contract of adamw.h for checked arguments in CPU memory.
void adamw_cpu(float* parameter, float* m, float* v, const float* gradient, int64_t count,
               const AdamwOptions& options);

}  // namespace flashloom::detail
