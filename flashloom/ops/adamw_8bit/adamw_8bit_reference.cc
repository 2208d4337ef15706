#include <algorithm>
#include <cmath>
#include <vector>

#include "flashloom/core/element.h"
#include "flashloom/core/stochastic_rounding.h"
#include "flashloom/ops/adamw_8bit/adamw_8bit.h"

namespace flashloom {
namespace {

// Nearest by search; halfway the smaller magnitude. See encode_dynamic() for positive v.
uint8_t nearest_code(double x, bool is_signed) {
  const std::array<float, 256>& code = dynamic_code(is_signed);
  size_t best = 0;
  for (size_t i = 1; i < code.size(); ++i) {
    const double distance = std::abs(code[i] - x);
    const double least = std::abs(code[best] - x);
    if (distance < least || (distance == least && std::abs(code[i]) < std::abs(code[best]))) {
      best = i;
    }
  }
  return static_cast<uint8_t>(!is_signed && x > 0 ? std::max<size_t>(best, 1) : best);
}

void store(const QuantizedMoment& moment, int64_t first, const std::vector<double>& values,
           bool is_signed) {
  double largest = 0;
  for (const double value : values) {
    largest = std::max(largest, std::abs(value));
  }
  const auto scale = static_cast<float>(largest);
  moment.scales.as<float>()[first / kDynamicCodeBlock] = scale;
  for (size_t i = 0; i < values.size(); ++i) {
    moment.codes.as<uint8_t>()[first + static_cast<int64_t>(i)] =
        nearest_code(scale > 0 ? values[i] / scale : 0, is_signed);
  }
}

}  // namespace

void adamw_8bit_reference(TensorView parameter, const QuantizedMoment& m, const QuantizedMoment& v,
                          ConstTensorView gradient, const AdamwOptions& options) {
  const int64_t count = parameter.size();
  parameter = parameter.reshape({count});
  gradient = gradient.reshape({count});
  const auto step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(options.beta1, step);
  const double correction2 = 1 - std::pow(options.beta2, step);
  for (int64_t first = 0; first < count; first += kDynamicCodeBlock) {
    std::vector<double> new_m, new_v;
    for (int64_t i = first; i < std::min(count, first + kDynamicCodeBlock); ++i) {
      const double m_i = double{dynamic_code(true)[m.codes.as<uint8_t>()[i]]} *
                         m.scales.as<float>()[first / kDynamicCodeBlock];
      const double v_i = double{dynamic_code(false)[v.codes.as<uint8_t>()[i]]} *
                         v.scales.as<float>()[first / kDynamicCodeBlock];
      const double g = options.gradient_scale * load_element(gradient, {i});
      new_m.push_back(options.beta1 * m_i + (1 - options.beta1) * g);
      new_v.push_back(options.beta2 * v_i + (1 - options.beta2) * g * g);
      const double p = load_element(parameter, {i});
      const double direction =
          new_m.back() / correction1 / (std::sqrt(new_v.back() / correction2) + options.epsilon);
      const double updated = p - options.learning_rate * (direction + options.weight_decay * p);
      if (parameter.dtype == DType::bf16 && options.rounding == AdamwRounding::stochastic) {
        parameter.as<bf16>()[i] =
            round_stochastically(static_cast<float>(updated),
                                 rounding_bits(options.seed, static_cast<uint64_t>(options.step),
                                               static_cast<uint64_t>(options.position + i)));
      } else {
        store_element(parameter, {i}, updated);
      }
    }
    store(m, first, new_m, true);
    store(v, first, new_v, false);
  }
}

}  // namespace flashloom
