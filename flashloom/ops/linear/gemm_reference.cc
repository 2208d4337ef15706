#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/reference_element.h"

namespace flashloom {

void gemm_reference(TensorView c, ConstTensorView a, ConstTensorView b,
                    const GemmOptions& options) {
  if (options.transpose_a) {
    a = a.transpose(0, 1);
  }
  if (options.transpose_b) {
    b = b.transpose(0, 1);
  }
  for (int64_t i = 0; i < c.dim(0); ++i) {
    for (int64_t j = 0; j < c.dim(1); ++j) {
      double sum = 0;
      for (int64_t p = 0; p < a.dim(1); ++p) {
        sum += load_element(a, i, p) * load_element(b, p, j);
      }
      const double before = options.beta == 0 ? 0 : options.beta * load_element(c, i, j);
      store_element(c, i, j, options.alpha * sum + before);
    }
  }
}

}  // namespace flashloom
