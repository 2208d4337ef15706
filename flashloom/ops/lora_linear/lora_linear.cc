#include "flashloom/ops/lora_linear/lora_linear.h"

#include <fmt/format.h>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/lora_linear/lora_linear_cpu.h"

namespace flashloom {
namespace {

void check_vector(std::string_view op, std::string_view argument, const ConstTensorView& view,
                  int64_t size) {
  check_tensor(op, argument, view, {size});
}

struct Sums {
  int64_t ranks = 0;
  int64_t scaled_outputs = 0;  // of projections with a magnitude
};

// Weights and adapters agree among themselves.
Sums check_projections(std::string_view op, std::span<const LoraProjection> projections) {
  check(!projections.empty(), op, "projections", "at least one", "none");
  Sums sums;
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    const auto name = [&](std::string_view field) {
      return fmt::format("projections[{}].{}", i, field);
    };
    if (p.blocks) {
      check(!p.weight, op, name("weight"), "nothing beside blocks", describe(p.weight));
    } else {
      check_tensor(op, name("weight"), p.weight, {kAnySize, kAnySize}, {DType::f32, DType::bf16});
    }
    const int64_t inputs = projections[0].inputs();
    check(p.inputs() == inputs, op, name(p.blocks ? "blocks" : "weight"),
          fmt::format("(any, {})", inputs), fmt::format("({}, {})", p.outputs(), p.inputs()));
    if (p.bias) {
      check_vector(op, name("bias"), p.bias, p.outputs());
    }
    if (p.a) {
      check_tensor(op, name("a"), p.a, {kAnySize, inputs});
      check_tensor(op, name("b"), p.b, {p.outputs(), p.a.dim(0)});
      sums.ranks += p.a.dim(0);
    } else {
      check(!p.b, op, name("b"), "nothing without a", describe(p.b));
    }
    if (p.magnitude) {
      check(static_cast<bool>(p.a), op, name("magnitude"), "an adapter beside it", "none");
      check_vector(op, name("magnitude"), p.magnitude, p.outputs());
      check_vector(op, name("row_norms"), p.row_norms, p.outputs());
      sums.scaled_outputs += p.outputs();
    }
  }
  return sums;
}

void check_count(std::string_view op, std::string_view argument, size_t actual, size_t expected) {
  check(actual == expected, op, argument, fmt::format("one a projection, {}", expected),
        fmt::format("{}", actual));
}

}  // namespace

void lora_linear_forward(std::span<const TensorView> y, TensorView hidden, ConstTensorView x,
                         std::span<const LoraProjection> projections, Stream) {
  constexpr std::string_view kOp = "lora_linear_forward";
  const Sums sums = check_projections(kOp, projections);
  check_count(kOp, "y", y.size(), projections.size());
  check_tensor(kOp, "x", x, {kAnySize, projections[0].inputs()});
  for (size_t i = 0; i < y.size(); ++i) {
    check_tensor(kOp, fmt::format("y[{}]", i), y[i], {x.dim(0), projections[i].outputs()});
  }
  if (sums.ranks > 0) {
    check_tensor(kOp, "hidden", hidden, {x.dim(0), sums.ranks});
  }
  lora_linear_forward_cpu(y, hidden, x, projections);
}

void lora_linear_backward(TensorView dx, std::span<const LoraGradients> gradients,
                          TensorView dhidden, std::span<const ConstTensorView> dy,
                          ConstTensorView x, ConstTensorView hidden,
                          std::span<const LoraProjection> projections, bool accumulate_input,
                          TensorView scratch, Stream) {
  constexpr std::string_view kOp = "lora_linear_backward";
  const Sums sums = check_projections(kOp, projections);
  check_count(kOp, "dy", dy.size(), projections.size());
  check_count(kOp, "gradients", gradients.size(), projections.size());
  const int64_t inputs = projections[0].inputs();
  check_tensor(kOp, "dy[0]", dy[0], {kAnySize, projections[0].outputs()});
  const int64_t tokens = dy[0].dim(0);
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    check_tensor(kOp, fmt::format("dy[{}]", i), dy[i], {tokens, p.outputs()});
    if (p.a) {
      check_tensor(kOp, fmt::format("gradients[{}].da", i), gradients[i].da,
                   {p.a.dim(0), p.a.dim(1)});
      check_tensor(kOp, fmt::format("gradients[{}].db", i), gradients[i].db,
                   {p.b.dim(0), p.b.dim(1)});
    }
    if (p.magnitude) {
      check_vector(kOp, fmt::format("gradients[{}].dmagnitude", i), gradients[i].dmagnitude,
                   p.outputs());
    }
  }
  if (dx) {
    check_tensor(kOp, "dx", dx, {tokens, inputs});
  }
  if (sums.ranks > 0) {
    check_tensor(kOp, "x", x, {tokens, inputs});
    check_tensor(kOp, "hidden", hidden, {tokens, sums.ranks});
    check_tensor(kOp, "dhidden", dhidden, {tokens, sums.ranks});
  }
  if (sums.scaled_outputs > 0) {
    check_shape(kOp, "scratch", scratch, {tokens, sums.scaled_outputs});
    check_contiguous(kOp, "scratch", scratch);
    check_dtype(kOp, "scratch", scratch, {DType::f32});
  }
  lora_linear_backward_cpu(dx, gradients, dhidden, dy, x, hidden, projections, accumulate_input,
                           scratch);
}

void dora_row_norms(TensorView norms, const LoraProjection& projection, TensorView scratch,
                    Stream) {
  constexpr std::string_view kOp = "dora_row_norms";
  LoraProjection plain = projection;  // its row_norms may be what is asked for
  plain.magnitude = {};
  check_projections(kOp, {&plain, 1});
  check(static_cast<bool>(projection.a), kOp, "projections[0].a", "an adapter", "none");
  check_vector(kOp, "norms", norms, projection.outputs());
  check_tensor(kOp, "scratch", scratch, {kAnySize, dora_scratch_columns(projection.inputs())});
  check(scratch.dim(0) >= thread_count(), kOp, "scratch",
        fmt::format("a row for each of {} threads", thread_count()), describe(scratch));
  dora_row_norms_cpu(norms, plain, scratch);
}

}  // namespace flashloom
