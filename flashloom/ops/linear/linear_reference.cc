#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/linear.h"
#include "flashloom/ops/linear/reference_element.h"

namespace flashloom {

void linear_forward_reference(TensorView y, ConstTensorView x, ConstTensorView weight,
                              ConstTensorView bias) {
  for (int64_t t = 0; t < y.dim(0); ++t) {
    for (int64_t n = 0; n < y.dim(1); ++n) {
      double sum = bias ? load_element(bias, n) : 0;
      for (int64_t k = 0; k < x.dim(1); ++k) {
        sum += load_element(x, t, k) * load_element(weight, n, k);
      }
      store_element(y, t, n, sum);
    }
  }
}

void linear_backward_reference(TensorView dx, TensorView dweight, TensorView dbias,
                               ConstTensorView dy, ConstTensorView x, ConstTensorView weight,
                               const LinearBackwardOptions& options) {
  if (dx) {
    gemm_reference(dx, dy, weight, {.beta = options.accumulate_input ? 1.0f : 0.0f});
  }
  if (dweight) {
    gemm_reference(dweight, dy, x, {.transpose_a = true, .beta = 1});
  }
  if (dbias) {
    for (int64_t n = 0; n < dy.dim(1); ++n) {
      double sum = load_element(dbias, n);
      for (int64_t t = 0; t < dy.dim(0); ++t) {
        sum += load_element(dy, t, n);
      }
      store_element(dbias, n, sum);
    }
  }
}

}  // namespace flashloom
