#include "flashloom/ops/layer_norm/layer_norm.h"

#include <fmt/format.h>

#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/layer_norm/layer_norm_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kForward = "layer_norm_forward";
constexpr std::string_view kBackward = "layer_norm_backward";

void check_input(std::string_view op, const ConstTensorView& input) {
  check_tensor(op, "input", input, {kAnySize, kAnySize}, {DType::f32, DType::bf16});
  check(input.dim(1) > 0, op, "input", "at least one column", describe(input));
}

// A vector of `size` numbers without gaps.
void check_vector(std::string_view op, std::string_view argument, const ConstTensorView& view,
                  int64_t size, std::initializer_list<DType> dtypes) {
  check_shape(op, argument, view, {size});
  check_dtype(op, argument, view, dtypes);
  check_contiguous(op, argument, view);
  check_cpu(op, argument, view);
}

}  // namespace

void layer_norm_forward(TensorView out, TensorView mean, TensorView inverse_deviation,
                        TensorView sum, ConstTensorView input, ConstTensorView residual,
                        ConstTensorView weight, ConstTensorView bias,
                        const LayerNormOptions& options, Stream /*stream*/) {
  check_input(kForward, input);
  check_like(kForward, "out", out, input);
  if (residual) {
    check_like(kForward, "residual", residual, input);
    check_like(kForward, "sum", sum, input);
    check(out.data != sum.data || out.size() == 0, kForward, "out", "memory other than sum's",
          "the same");
  } else {
    check(!sum, kForward, "sum", "nothing without a residual", describe(sum));
  }
  if (mean) {
    check_vector(kForward, "mean", mean, input.dim(0), {DType::f32});
  }
  if (inverse_deviation) {
    check_vector(kForward, "inverse_deviation", inverse_deviation, input.dim(0), {DType::f32});
  }
  check_vector(kForward, "weight", weight, input.dim(1), {DType::f32, DType::bf16});
  if (bias) {
    check_vector(kForward, "bias", bias, input.dim(1), {weight.dtype});
  }
  check(options.epsilon >= 0 && std::isfinite(options.epsilon), kForward, "epsilon",
        "a finite number that is not negative", fmt::format("{}", options.epsilon));
  detail::layer_norm_forward_cpu(out, mean, inverse_deviation, sum, input, residual, weight, bias,
                                 static_cast<float>(options.epsilon));
}

void layer_norm_backward(TensorView dinput, TensorView dweight, TensorView dbias,
                         ConstTensorView dout, ConstTensorView dresidual, ConstTensorView input,
                         ConstTensorView mean, ConstTensorView inverse_deviation,
                         ConstTensorView weight, std::span<std::byte> workspace,
                         Stream /*stream*/) {
  check_input(kBackward, input);
  check_like(kBackward, "dinput", dinput, input);
  check_like(kBackward, "dout", dout, input);
  if (dresidual) {
    check_like(kBackward, "dresidual", dresidual, input);
  }
  const int64_t rows = input.dim(0);
  const int64_t columns = input.dim(1);
  check_vector(kBackward, "mean", mean, rows, {DType::f32});
  check_vector(kBackward, "inverse_deviation", inverse_deviation, rows, {DType::f32});
  check_vector(kBackward, "weight", weight, columns, {DType::f32, DType::bf16});
  if (dweight) {
    check_vector(kBackward, "dweight", dweight, columns, {DType::f32});
  }
  if (dbias) {
    check_vector(kBackward, "dbias", dbias, columns, {DType::f32});
  }
  if (dweight || dbias) {
    const int64_t bytes = layer_norm_backward_workspace_bytes(rows, columns);
    check(static_cast<int64_t>(workspace.size()) >= bytes, kBackward, "workspace",
          fmt::format("{} bytes", bytes), fmt::format("{} bytes", workspace.size()));
    check(reinterpret_cast<uintptr_t>(workspace.data()) % alignof(float) == 0, kBackward,
          "workspace", "memory aligned for f32", "an odd address");
  }
  detail::layer_norm_backward_cpu(dinput, dweight, dbias, dout, dresidual, input, mean,
                                  inverse_deviation, weight,
                                  reinterpret_cast<float*>(workspace.data()));
}

int64_t layer_norm_backward_workspace_bytes(int64_t rows, int64_t columns) {
  const int64_t tiles = tile_count(rows, detail::layer_norm_backward_tile_rows(rows));
  return 2 * tiles * columns * static_cast<int64_t>(sizeof(float));
}

}  // namespace flashloom
