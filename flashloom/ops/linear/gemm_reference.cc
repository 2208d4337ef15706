#include "flashloom/ops/linear/gemm.h"

namespace flashloom {

void gemm_reference(TensorView c, ConstTensorView a, ConstTensorView b,
                    const GemmOptions& options) {
  float* c_data = c.as<float>();
  const float* a_data = a.as<float>();
  const float* b_data = b.as<float>();
  const int64_t depth = a.dim(options.transpose_a ? 0 : 1);
  const int64_t a_row = options.transpose_a ? 1 : a.stride(0);
  const int64_t a_depth = options.transpose_a ? a.stride(0) : 1;
  const int64_t b_column = options.transpose_b ? b.stride(0) : 1;
  const int64_t b_depth = options.transpose_b ? 1 : b.stride(0);
  for (int64_t i = 0; i < c.dim(0); ++i) {
    for (int64_t j = 0; j < c.dim(1); ++j) {
      double sum = 0;
      for (int64_t p = 0; p < depth; ++p) {
        sum += static_cast<double>(a_data[i * a_row + p * a_depth]) *
               b_data[j * b_column + p * b_depth];
      }
      float& out = c_data[i * c.stride(0) + j];
      const double before = options.beta == 0 ? 0 : static_cast<double>(options.beta) * out;
      out = static_cast<float>(static_cast<double>(options.alpha) * sum + before);
    }
  }
}

}  // namespace flashloom
