#include "flashloom/ops/layer_norm/layer_norm_reference.h"

#include <cmath>
#include <vector>

#include "flashloom/core/element.h"

namespace flashloom {
namespace {

void add_to(const TensorView& total, const std::vector<double>& terms) {
  for (int64_t i = 0; total && i < total.shape[0]; ++i) {
    store_element(total, {i}, load_element(total, {i}) + terms[static_cast<size_t>(i)]);
  }
}

}  // namespace

void layer_norm_forward_reference(TensorView out, TensorView mean, TensorView inverse_deviation,
                                  TensorView sum, ConstTensorView input, ConstTensorView residual,
                                  ConstTensorView weight, ConstTensorView bias,
                                  const LayerNormOptions& options, Stream /*stream*/) {
  const int64_t columns = input.shape[1];
  const auto count = static_cast<double>(columns);
  const ConstTensorView x = residual ? ConstTensorView(sum) : input;
  for (int64_t row = 0; row < input.shape[0]; ++row) {
    double m = 0;
    for (int64_t i = 0; i < columns; ++i) {
      if (residual) {
        store_element(sum, {row, i},
                      load_element(input, {row, i}) + load_element(residual, {row, i}));
      }
      m += load_element(x, {row, i}) / count;
    }
    double variance = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const double centred = load_element(x, {row, i}) - m;
      variance += centred * centred / count;
    }
    const double r = 1 / std::sqrt(variance + options.epsilon);
    if (mean) {
      store_element(mean, {row}, m);
    }
    if (inverse_deviation) {
      store_element(inverse_deviation, {row}, r);
    }
    for (int64_t i = 0; i < columns; ++i) {
      const double y = (load_element(x, {row, i}) - m) * r * load_element(weight, {i});
      store_element(out, {row, i}, y + (bias ? load_element(bias, {i}) : 0));
    }
  }
}

void layer_norm_backward_reference(TensorView dinput, TensorView dweight, TensorView dbias,
                                   ConstTensorView dout, ConstTensorView dresidual,
                                   ConstTensorView input, ConstTensorView mean,
                                   ConstTensorView inverse_deviation, ConstTensorView weight,
                                   std::span<std::byte> /*workspace*/, Stream /*stream*/) {
  const int64_t columns = input.shape[1];
  const auto count = static_cast<double>(columns);
  std::vector<double> dweight_sum(static_cast<size_t>(columns), 0.0);
  std::vector<double> dbias_sum(static_cast<size_t>(columns), 0.0);
  for (int64_t row = 0; row < input.shape[0]; ++row) {
    const double m = load_element(mean, {row});
    const double r = load_element(inverse_deviation, {row});
    double gradient_mean = 0;
    double product_mean = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const double dy = load_element(dout, {row, i});
      const double g = dy * load_element(weight, {i});
      const double n = (load_element(input, {row, i}) - m) * r;
      gradient_mean += g / count;
      product_mean += g * n / count;
      dweight_sum[static_cast<size_t>(i)] += dy * n;
      dbias_sum[static_cast<size_t>(i)] += dy;
    }
    for (int64_t i = 0; i < columns; ++i) {
      const double g = load_element(dout, {row, i}) * load_element(weight, {i});
      const double n = (load_element(input, {row, i}) - m) * r;
      const double other = dresidual ? load_element(dresidual, {row, i}) : 0;
      store_element(dinput, {row, i}, r * (g - gradient_mean - n * product_mean) + other);
    }
  }
  add_to(dweight, dweight_sum);
  add_to(dbias, dbias_sum);
}

}  // namespace flashloom
