#include "flashloom/ops/rope/rope_reference.h"

#include <cmath>

#include "flashloom/core/element.h"

namespace flashloom {
namespace {

double angle(const ConstTensorView& positions, const ConstTensorView& frequencies, int64_t t,
             int64_t i) {
  const auto position = static_cast<float>(load_element(positions, {t}));
  return position * static_cast<float>(load_element(frequencies, {i}));
}

// direction: 1 forward, -1 backward.
void rotate(const TensorView& x, const ConstTensorView& bias, const ConstTensorView& positions,
            const ConstTensorView& frequencies, double direction) {
  const int64_t half = x.shape[2] / 2;
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      for (int64_t i = 0; i < half; ++i) {
        double x1 = load_element(x, {t, h, i});
        double x2 = load_element(x, {t, h, i + half});
        if (bias) {
          x1 += load_element(bias, {h * 2 * half + i});
          x2 += load_element(bias, {h * 2 * half + i + half});
        }
        const double a = angle(positions, frequencies, t, i);
        const double c = std::cos(a);
        const double s = direction * std::sin(a);
        store_element(x, {t, h, i}, x1 * c - x2 * s);
        store_element(x, {t, h, i + half}, x2 * c + x1 * s);
      }
    }
  }
}

void add_bias(const TensorView& x, const ConstTensorView& bias) {
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      for (int64_t i = 0; i < x.shape[2]; ++i) {
        store_element(x, {t, h, i},
                      load_element(x, {t, h, i}) + load_element(bias, {h * x.shape[2] + i}));
      }
    }
  }
}

void add_column_sums(const TensorView& dbias, const ConstTensorView& x) {
  for (int64_t h = 0; h < x.shape[1]; ++h) {
    for (int64_t i = 0; i < x.shape[2]; ++i) {
      double sum = load_element(dbias, {h * x.shape[2] + i});
      for (int64_t t = 0; t < x.shape[0]; ++t) {
        sum += load_element(x, {t, h, i});
      }
      store_element(dbias, {h * x.shape[2] + i}, sum);
    }
  }
}

}  // namespace

void rope_forward_reference(TensorView q, TensorView k, TensorView v, ConstTensorView positions,
                            ConstTensorView frequencies, const RopeBias& bias, Stream /*stream*/) {
  rotate(q, bias.q, positions, frequencies, 1);
  if (k) {
    rotate(k, bias.k, positions, frequencies, 1);
  }
  if (v && bias.v) {
    add_bias(v, bias.v);
  }
}

void rope_backward_reference(TensorView dq, TensorView dk, ConstTensorView dv,
                             ConstTensorView positions, ConstTensorView frequencies,
                             const RopeBiasGradients& dbias, Stream /*stream*/) {
  rotate(dq, {}, positions, frequencies, -1);
  if (dk) {
    rotate(dk, {}, positions, frequencies, -1);
  }
  if (dbias.q) {
    add_column_sums(dbias.q, dq);
  }
  if (dbias.k) {
    add_column_sums(dbias.k, dk);
  }
  if (dbias.v) {
    add_column_sums(dbias.v, dv);
  }
}

}  // namespace flashloom
