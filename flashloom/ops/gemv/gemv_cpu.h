#pragma once

#include <cstdint>

#include "flashloom/core/tensor_view.h"
#include "flashloom/ops/gemv/gemv.h"

namespace flashloom::detail {

/// What becomes of a row's sum.
struct GemvEpilogue {
  float* y;
  const float* bias;
  GemvOptions options;

  void store(int64_t row, float sum) const {
    float value = options.alpha * sum;
    if (options.beta != 0) {
      value += options.beta * y[row];
    }
    if (bias != nullptr) {
      value += bias[row];
    }
    y[row] = value;
  }
};

// The contract of gemv.h for checked arguments in CPU memory.
void gemv_cpu(const TensorView& y, const ConstTensorView& matrix, const ConstTensorView& x,
              const ConstTensorView& bias, const GemvOptions& options);

}  // namespace flashloom::detail
