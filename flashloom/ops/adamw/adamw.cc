#include "flashloom/ops/adamw/adamw.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/ops/adamw/adamw_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "adamw";

void check_like_parameter(std::string_view argument, const ConstTensorView& view,
                          const ConstTensorView& parameter,
                          std::initializer_list<DType> dtypes = {DType::f32}) {
  const bool same =
      view.rank == parameter.rank &&
      std::equal(view.shape.begin(), view.shape.begin() + view.rank, parameter.shape.begin());
  check(same, kOp, argument, describe(parameter) + " as the parameter", describe(view));
  check_dtype(kOp, argument, view, dtypes);
  check_contiguous(kOp, argument, view);
  check_cpu(kOp, argument, view);
}

}  // namespace

void check_adamw_options(std::string_view op, const AdamwOptions& options) {
  const auto check_number = [&](bool ok, std::string_view argument, std::string_view expected,
                                double value) {
    if (!ok) {
      throw InvalidArgument(op, argument, expected, fmt::format("{}", value));
    }
  };
  const auto not_negative = [&](std::string_view argument, double value) {
    check_number(value >= 0 && std::isfinite(value), argument, "a finite number from 0 on", value);
  };
  not_negative("learning_rate", options.learning_rate);
  not_negative("epsilon", options.epsilon);
  not_negative("weight_decay", options.weight_decay);
  check_number(options.beta1 >= 0 && options.beta1 < 1, "beta1", "a number in [0, 1)",
               options.beta1);
  check_number(options.beta2 >= 0 && options.beta2 < 1, "beta2", "a number in [0, 1)",
               options.beta2);
  check_number(std::isfinite(options.gradient_scale), "gradient_scale", "a finite number",
               options.gradient_scale);
  check(options.step >= 1, op, "step", "1 or more", fmt::format("{}", options.step));
  check(options.position >= 0, op, "position", "0 or more", fmt::format("{}", options.position));
}

void adamw(TensorView parameter, TensorView m, TensorView v, ConstTensorView gradient,
           const AdamwOptions& options, Stream /*stream*/) {
  check(static_cast<bool>(parameter), kOp, "parameter", "a tensor", describe(parameter));
  check_like_parameter("parameter", parameter, parameter, {DType::f32, DType::bf16});
  check_like_parameter("m", m, parameter);
  check_like_parameter("v", v, parameter);
  check_like_parameter("gradient", gradient, parameter);
  check_adamw_options(kOp, options);
  detail::adamw_cpu(parameter, m.as<float>(), v.as<float>(), gradient.as<float>(), options);
}

}  // namespace flashloom
