#include "flashloom/ops/geglu/geglu_reference.h"

#include <cmath>
#include <numbers>

#include "flashloom/core/element.h"

namespace flashloom {
namespace {

struct Gelu {
  double value;
  double slope;
};

Gelu gelu(double g, GeluApproximation approximation) {
  if (approximation == GeluApproximation::none) {
    const double cumulative = 0.5 * std::erfc(-g / std::numbers::sqrt2);
    const double density = std::exp(-g * g / 2) / std::sqrt(2 * std::numbers::pi);
    return {g * cumulative, cumulative + g * density};
  }
  const double c = std::sqrt(2 / std::numbers::pi);
  const double inner = c * (g + 0.044715 * g * g * g);
  const double inner_slope = c * (1 + 3 * 0.044715 * g * g);
  // (1 + tanh x) / 2 is the logistic function of 2 x, which loses nothing where tanh is near -1.
  const double s = 1 / (1 + std::exp(-2 * inner));
  const double complement = 1 / (1 + std::exp(2 * inner));
  return {g * s, s + g * s * complement * 2 * inner_slope};
}

}  // namespace

void geglu_forward_reference(TensorView out, ConstTensorView gate, ConstTensorView up,
                             const GegluOptions& options, Stream /*stream*/) {
  for (int64_t row = 0; row < gate.shape[0]; ++row) {
    for (int64_t i = 0; i < gate.shape[1]; ++i) {
      const Gelu g = gelu(load_element(gate, {row, i}), options.approximation);
      store_element(out, {row, i}, g.value * load_element(up, {row, i}));
    }
  }
}

void geglu_backward_reference(TensorView dgate, TensorView dup, TensorView out,
                              ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                              const GegluOptions& options, Stream /*stream*/) {
  for (int64_t row = 0; row < gate.shape[0]; ++row) {
    for (int64_t i = 0; i < gate.shape[1]; ++i) {
      const Gelu g = gelu(load_element(gate, {row, i}), options.approximation);
      const double u = load_element(up, {row, i});
      const double dh = load_element(dout, {row, i});
      store_element(dgate, {row, i}, dh * u * g.slope);
      store_element(dup, {row, i}, dh * g.value);
      if (out) {
        store_element(out, {row, i}, g.value * u);
      }
    }
  }
}

}  // namespace flashloom
