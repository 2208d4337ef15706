#include "flashloom/ops/gradient_norm/gradient_norm_reference.h"

#include "flashloom/core/element.h"

namespace flashloom {

double sum_of_squares_reference(ConstTensorView gradient, Stream /*stream*/) {
  const ConstTensorView flat = gradient.reshape({gradient.size()});
  double sum = 0;
  for (int64_t i = 0; i < flat.shape[0]; ++i) {
    const double g = load_element(flat, {i});
    sum += g * g;
  }
  return sum;
}

}  // namespace flashloom
