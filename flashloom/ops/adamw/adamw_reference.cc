#include "flashloom/ops/adamw/adamw_reference.h"

#include <cmath>

#include "flashloom/core/element.h"
#include "flashloom/core/stochastic_rounding.h"

namespace flashloom {

void adamw_reference(TensorView parameter, TensorView m, TensorView v, ConstTensorView gradient,
                     const AdamwOptions& options, Stream /*stream*/) {
  const int64_t count = parameter.size();
  parameter = parameter.reshape({count});
  m = m.reshape({count});
  v = v.reshape({count});
  gradient = gradient.reshape({count});
  const auto step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(options.beta1, step);
  const double correction2 = 1 - std::pow(options.beta2, step);
  for (int64_t i = 0; i < count; ++i) {
    const double g = options.gradient_scale * load_element(gradient, {i});
    const double m_i = options.beta1 * load_element(m, {i}) + (1 - options.beta1) * g;
    const double v_i = options.beta2 * load_element(v, {i}) + (1 - options.beta2) * g * g;
    const double p = load_element(parameter, {i});
    const double direction = m_i / correction1 / (std::sqrt(v_i / correction2) + options.epsilon);
    store_element(m, {i}, m_i);
    store_element(v, {i}, v_i);
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
}

}  // namespace flashloom
