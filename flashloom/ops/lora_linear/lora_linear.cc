#include "flashloom/ops/lora_linear/lora_linear.h"

#include <fmt/format.h>

#include "flashloom/core/check.h"
#include "flashloom/ops/lora_linear/lora_linear_cpu.h"

namespace flashloom {
namespace {

void check_tensor(std::string_view op, std::string_view argument, const ConstTensorView& view,
                  std::initializer_list<int64_t> shape,
                  std::initializer_list<DType> dtypes = {DType::f32}) {
  check_shape(op, argument, view, shape);
  check_dtype(op, argument, view, dtypes);
  check_last_contiguous(op, argument, view);
  check_cpu(op, argument, view);
}

// Weights and adapters agree among themselves; returns the sum of the ranks.
int64_t check_projections(std::string_view op, std::span<const LoraProjection> projections) {
  check(!projections.empty(), op, "projections", "at least one", "none");
  int64_t ranks = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    const auto name = [&](std::string_view field) {
      return fmt::format("projections[{}].{}", i, field);
    };
    check_tensor(op, name("weight"), p.weight, {kAnySize, kAnySize}, {DType::f32, DType::bf16});
    const int64_t inputs = projections[0].weight.dim(1);
    check_shape(op, name("weight"), p.weight, {kAnySize, inputs});
    if (p.bias) {
      check_tensor(op, name("bias"), p.bias, {p.weight.dim(0)});
    }
    if (p.a) {
      check_tensor(op, name("a"), p.a, {kAnySize, inputs});
      check_tensor(op, name("b"), p.b, {p.weight.dim(0), p.a.dim(0)});
      ranks += p.a.dim(0);
    } else {
      check(!p.b, op, name("b"), "nothing without a", describe(p.b));
    }
  }
  return ranks;
}

void check_count(std::string_view op, std::string_view argument, size_t actual, size_t expected) {
  check(actual == expected, op, argument, fmt::format("one a projection, {}", expected),
        fmt::format("{}", actual));
}

}  // namespace

void lora_linear_forward(std::span<const TensorView> y, TensorView hidden, ConstTensorView x,
                         std::span<const LoraProjection> projections, Stream) {
  constexpr std::string_view kOp = "lora_linear_forward";
  const int64_t ranks = check_projections(kOp, projections);
  check_count(kOp, "y", y.size(), projections.size());
  check_tensor(kOp, "x", x, {kAnySize, projections[0].weight.dim(1)});
  for (size_t i = 0; i < y.size(); ++i) {
    check_tensor(kOp, fmt::format("y[{}]", i), y[i], {x.dim(0), projections[i].weight.dim(0)});
  }
  if (ranks > 0) {
    check_tensor(kOp, "hidden", hidden, {x.dim(0), ranks});
  }
  lora_linear_forward_cpu(y, hidden, x, projections);
}

void lora_linear_backward(TensorView dx, std::span<const LoraGradients> gradients,
                          TensorView dhidden, std::span<const ConstTensorView> dy,
                          ConstTensorView x, ConstTensorView hidden,
                          std::span<const LoraProjection> projections, bool accumulate_input,
                          Stream) {
  constexpr std::string_view kOp = "lora_linear_backward";
  const int64_t ranks = check_projections(kOp, projections);
  check_count(kOp, "dy", dy.size(), projections.size());
  check_count(kOp, "gradients", gradients.size(), projections.size());
  const int64_t inputs = projections[0].weight.dim(1);
  check_tensor(kOp, "dy[0]", dy[0], {kAnySize, projections[0].weight.dim(0)});
  const int64_t tokens = dy[0].dim(0);
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    check_tensor(kOp, fmt::format("dy[{}]", i), dy[i], {tokens, p.weight.dim(0)});
    if (p.a) {
      check_tensor(kOp, fmt::format("gradients[{}].da", i), gradients[i].da,
                   {p.a.dim(0), p.a.dim(1)});
      check_tensor(kOp, fmt::format("gradients[{}].db", i), gradients[i].db,
                   {p.b.dim(0), p.b.dim(1)});
    }
  }
  if (dx) {
    check_tensor(kOp, "dx", dx, {tokens, inputs});
  }
  if (ranks > 0) {
    check_tensor(kOp, "x", x, {tokens, inputs});
    check_tensor(kOp, "hidden", hidden, {tokens, ranks});
    check_tensor(kOp, "dhidden", dhidden, {tokens, ranks});
  }
  lora_linear_backward_cpu(dx, gradients, dhidden, dy, x, hidden, projections, accumulate_input);
}

}  // namespace flashloom
