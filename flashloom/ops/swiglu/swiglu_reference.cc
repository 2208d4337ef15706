#include "flashloom/ops/swiglu/swiglu_reference.h"

#include <cmath>

#include "flashloom/core/element.h"

namespace flashloom {

void swiglu_forward_reference(TensorView out, ConstTensorView gate, ConstTensorView up,
                              Stream /*stream*/) {
  for (int64_t row = 0; row < gate.shape[0]; ++row) {
    for (int64_t i = 0; i < gate.shape[1]; ++i) {
      const double g = load_element(gate, {row, i});
      store_element(out, {row, i}, g / (1 + std::exp(-g)) * load_element(up, {row, i}));
    }
  }
}

void swiglu_backward_reference(TensorView dgate, TensorView dup, TensorView out,
                               ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                               Stream /*stream*/) {
  for (int64_t row = 0; row < gate.shape[0]; ++row) {
    for (int64_t i = 0; i < gate.shape[1]; ++i) {
      const double g = load_element(gate, {row, i});
      const double u = load_element(up, {row, i});
      const double dh = load_element(dout, {row, i});
      const double s = 1 / (1 + std::exp(-g));
      const double complement = 1 / (1 + std::exp(g));
      store_element(dgate, {row, i}, dh * u * s * (1 + g * complement));
      store_element(dup, {row, i}, dh * g * s);
      if (out) {
        store_element(out, {row, i}, g * s * u);
      }
    }
  }
}

}  // namespace flashloom
