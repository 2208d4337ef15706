#include "flashloom/ops/gemv/gemv.h"

namespace flashloom {

void gemv_reference(TensorView y, ConstTensorView matrix, ConstTensorView x, ConstTensorView bias,
                    const GemvOptions& options) {
  float* out = y.as<float>();
  const float* vector = x.as<float>();
  for (int64_t i = 0; i < matrix.dim(0); ++i) {
    double sum = 0;
    for (int64_t k = 0; k < matrix.dim(1); ++k) {
      const int64_t at = i * matrix.stride(0) + k;
      const float element = matrix.dtype == DType::f32 ? matrix.as<float>()[at]
                                                       : static_cast<float>(matrix.as<bf16>()[at]);
      sum += static_cast<double>(element) * static_cast<double>(vector[k]);
    }
    double value = static_cast<double>(options.alpha) * sum;
    if (options.beta != 0) {
      value += static_cast<double>(options.beta) * static_cast<double>(out[i]);
    }
    if (bias) {
      value += static_cast<double>(bias.as<float>()[i]);
    }
    out[i] = static_cast<float>(value);
  }
}

}  // namespace flashloom
