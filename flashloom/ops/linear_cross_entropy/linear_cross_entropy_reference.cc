#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/ops/linear/reference_element.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace flashloom {
namespace {

// Logits of one row, capped.
void row_logits(std::vector<double>& z, const ConstTensorView& hidden,
                const ConstTensorView& weight, int64_t t, double softcap) {
  for (int64_t v = 0; v < weight.dim(0); ++v) {
    double sum = 0;
    for (int64_t c = 0; c < hidden.dim(1); ++c) {
      sum += load_element(hidden, t, c) * load_element(weight, v, c);
    }
    z[static_cast<size_t>(v)] = softcap > 0 ? softcap * std::tanh(sum / softcap) : sum;
  }
}

double log_sum_exp(const std::vector<double>& z) {
  const double largest = *std::max_element(z.begin(), z.end());
  if (largest == -std::numeric_limits<double>::infinity()) {
    return largest;
  }
  double sum = 0;
  for (const double x : z) {
    sum += std::exp(x - largest);
  }
  return largest + std::log(sum);
}

}  // namespace

void linear_cross_entropy_reference(TensorView loss, TensorView dhidden, TensorView dweight,
                                    ConstTensorView hidden, ConstTensorView weight,
                                    ConstTensorView labels,
                                    const LinearCrossEntropyOptions& options) {
  const int64_t vocabulary = weight.dim(0);
  const int64_t channels = hidden.dim(1);
  const double smoothing = options.label_smoothing;
  const double softcap = options.softcap;
  std::vector<double> z(static_cast<size_t>(vocabulary));
  std::vector<double> dx(static_cast<size_t>(channels));
  for (int64_t t = 0; t < hidden.dim(0); ++t) {
    const int32_t label = labels.as<int32_t>()[t];
    std::fill(dx.begin(), dx.end(), 0.0);
    double row_loss = 0;
    if (label != kIgnoredLabel) {
      row_logits(z, hidden, weight, t, softcap);
      const double lse = log_sum_exp(z);
      double mean = 0;
      for (const double x : z) {
        mean += x / static_cast<double>(vocabulary);
      }
      row_loss = (1 - smoothing) * (lse - z[static_cast<size_t>(label)]) +
                 smoothing * (lse - mean) + options.z_loss * lse * lse;
      for (int64_t v = 0; (dhidden || dweight) && v < vocabulary; ++v) {
        const double logit = z[static_cast<size_t>(v)];
        const double probability = std::exp(logit - lse);
        const bool keeps = v == label || probability >= options.filter;
        const double slope = softcap > 0 ? 1 - (logit / softcap) * (logit / softcap) : 1;
        const double scale = options.gradient_scale * slope;
        // What a filter may drop, and what smoothing takes from every token.
        const double all = scale * (probability * (1 + 2 * options.z_loss * lse) -
                                    (v == label ? 1 - smoothing : 0));
        const double smooth = scale * smoothing / static_cast<double>(vocabulary);
        const double dz = (keeps ? all : 0) - smooth;
        const double dz_of_weight = (keeps || !options.filter_weight_gradient ? all : 0) - smooth;
        for (int64_t c = 0; c < channels; ++c) {
          dx[static_cast<size_t>(c)] += dz * load_element(weight, v, c);
          if (dweight) {
            store_element(dweight, v, c,
                          load_element(dweight, v, c) + dz_of_weight * load_element(hidden, t, c));
          }
        }
      }
    }
    store_element(loss, t, row_loss);
    for (int64_t c = 0; dhidden && c < channels; ++c) {
      store_element(dhidden, t, c, dx[static_cast<size_t>(c)]);
    }
  }
}

}  // namespace flashloom
