#include "flashloom/ops/gradient_norm/gradient_norm.h"

#include <fmt/format.h>

#include "flashloom/core/check.h"
#include "flashloom/ops/gradient_norm/gradient_norm_cpu.h"

namespace flashloom {

double sum_of_squares(ConstTensorView gradient, Stream /*stream*/) {
  constexpr std::string_view kOp = "sum_of_squares";
  check(static_cast<bool>(gradient), kOp, "gradient", "a tensor", describe(gradient));
  check_dtype(kOp, "gradient", gradient, {DType::f32, DType::bf16});
  check_contiguous(kOp, "gradient", gradient);
  check_cpu(kOp, "gradient", gradient);
  return detail::sum_of_squares_cpu(gradient);
}

float clip_factor(double norm, double limit) {
  check(limit >= 0, "clip_factor", "limit", "a number from 0 on", fmt::format("{}", limit));
  if (limit == 0) {
    return 1.0f;
  }
  const double factor = limit / (norm + 1e-6);
  return factor > 1 ? 1.0f : static_cast<float>(factor);
}

}  // namespace flashloom
