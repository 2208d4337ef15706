#include "flashloom/ops/rms_norm/rms_norm_reference.h"

#include <cmath>
#include <vector>

#include "flashloom/core/element.h"

namespace flashloom {
namespace {

// (rows, N) as (rows, 1, N).
template <class View>
View with_heads(View view) {
  return view && view.rank == 2 ? view.split(0, 1) : view;
}

// (rows) as (rows, 1).
template <class View>
View scalars_with_heads(View view) {
  return view && view.rank == 1 ? view.split(0, 1) : view;
}

}  // namespace

void rms_norm_forward_reference(TensorView out, TensorView inverse_rms, TensorView sum,
                                ConstTensorView input, ConstTensorView residual,
                                ConstTensorView weight, const RmsNormOptions& options,
                                Stream /*stream*/) {
  out = with_heads(out);
  sum = with_heads(sum);
  input = with_heads(input);
  residual = with_heads(residual);
  inverse_rms = scalars_with_heads(inverse_rms);
  const int64_t columns = input.shape[2];
  for (int64_t t = 0; t < input.shape[0]; ++t) {
    for (int64_t h = 0; h < input.shape[1]; ++h) {
      double squares = 0;
      for (int64_t i = 0; i < columns; ++i) {
        double x = load_element(input, {t, h, i});
        if (residual) {
          store_element(sum, {t, h, i}, x + load_element(residual, {t, h, i}));
          x = load_element(sum, {t, h, i});
        }
        squares += x * x;
      }
      const double r = 1 / std::sqrt(squares / static_cast<double>(columns) + options.epsilon);
      if (inverse_rms) {
        store_element(inverse_rms, {t, h}, r);
      }
      for (int64_t i = 0; i < columns; ++i) {
        const double x = load_element(residual ? ConstTensorView(sum) : input, {t, h, i});
        store_element(out, {t, h, i}, x * r * load_element(weight, {i}));
      }
    }
  }
}

void rms_norm_backward_reference(TensorView dinput, TensorView dweight, ConstTensorView dout,
                                 ConstTensorView dresidual, ConstTensorView input,
                                 ConstTensorView inverse_rms, ConstTensorView weight,
                                 std::span<std::byte> /*workspace*/, Stream /*stream*/) {
  dinput = with_heads(dinput);
  dout = with_heads(dout);
  dresidual = with_heads(dresidual);
  input = with_heads(input);
  inverse_rms = scalars_with_heads(inverse_rms);
  const int64_t columns = input.shape[2];
  std::vector<double> dweight_sum(static_cast<size_t>(columns), 0.0);
  for (int64_t t = 0; t < input.shape[0]; ++t) {
    for (int64_t h = 0; h < input.shape[1]; ++h) {
      const double r = load_element(inverse_rms, {t, h});
      double mean = 0;
      for (int64_t i = 0; i < columns; ++i) {
        mean += load_element(dout, {t, h, i}) * load_element(weight, {i}) *
                load_element(input, {t, h, i}) / static_cast<double>(columns);
      }
      for (int64_t i = 0; i < columns; ++i) {
        const double dy = load_element(dout, {t, h, i});
        const double x = load_element(input, {t, h, i});
        const double other = dresidual ? load_element(dresidual, {t, h, i}) : 0;
        dweight_sum[i] += dy * x * r;
        store_element(dinput, {t, h, i},
                      r * (dy * load_element(weight, {i}) - x * r * r * mean) + other);
      }
    }
  }
  if (dweight) {
    for (int64_t i = 0; i < columns; ++i) {
      store_element(dweight, {i}, load_element(dweight, {i}) + dweight_sum[i]);
    }
  }
}

}  // namespace flashloom
