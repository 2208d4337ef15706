#include "flashloom/ops/rms_norm/rms_norm.h"

#include <fmt/format.h>

#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/rms_norm/rms_norm_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kForward = "rms_norm_forward";
constexpr std::string_view kBackward = "rms_norm_backward";

void check_input(std::string_view op, const ConstTensorView& input) {
  check(input.rank == 2 || input.rank == 3, op, "input", "shape (rows, N) or (T, H, N)",
        describe(input));
  check_dtype(op, "input", input, {DType::f32, DType::bf16});
  check(input.dim(-1) > 0, op, "input", "at least one column", describe(input));
  check_last_contiguous(op, "input", input);
  check_cpu(op, "input", input);
}

void check_scalars(std::string_view op, std::string_view argument, const ConstTensorView& view,
                   const ConstTensorView& input) {
  if (input.rank == 3) {
    check_shape(op, argument, view, {input.shape[0], input.shape[1]});
  } else {
    check_shape(op, argument, view, {input.shape[0]});
  }
  check_dtype(op, argument, view, {DType::f32});
  check_contiguous(op, argument, view);
  check_cpu(op, argument, view);
}

void check_weight(std::string_view op, const ConstTensorView& weight,
                  const ConstTensorView& input) {
  check_shape(op, "weight", weight, {input.dim(-1)});
  check_dtype(op, "weight", weight, {DType::f32, DType::bf16});
  check_contiguous(op, "weight", weight);
  check_cpu(op, "weight", weight);
}

}  // namespace

void rms_norm_forward(TensorView out, TensorView inverse_rms, TensorView sum, ConstTensorView input,
                      ConstTensorView residual, ConstTensorView weight,
                      const RmsNormOptions& options, Stream /*stream*/) {
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
  if (inverse_rms) {
    check_scalars(kForward, "inverse_rms", inverse_rms, input);
  }
  check_weight(kForward, weight, input);
  check(options.epsilon >= 0 && std::isfinite(options.epsilon), kForward, "epsilon",
        "a finite number that is not negative", fmt::format("{}", options.epsilon));
  detail::rms_norm_forward_cpu(out, inverse_rms, sum, input, residual, weight,
                               static_cast<float>(options.epsilon));
}

void rms_norm_backward(TensorView dinput, TensorView dweight, ConstTensorView dout,
                       ConstTensorView dresidual, ConstTensorView input,
                       ConstTensorView inverse_rms, ConstTensorView weight,
                       std::span<std::byte> workspace, Stream /*stream*/) {
  check_input(kBackward, input);
  check_like(kBackward, "dinput", dinput, input);
  check_like(kBackward, "dout", dout, input);
  if (dresidual) {
    check_like(kBackward, "dresidual", dresidual, input);
  }
  check_scalars(kBackward, "inverse_rms", inverse_rms, input);
  check_weight(kBackward, weight, input);
  if (dweight) {
    check_shape(kBackward, "dweight", dweight, {input.dim(-1)});
    check_dtype(kBackward, "dweight", dweight, {DType::f32});
    check_contiguous(kBackward, "dweight", dweight);
    check_cpu(kBackward, "dweight", dweight);
    const int64_t columns = input.dim(-1);
    const int64_t bytes = rms_norm_backward_workspace_bytes(input.size() / columns, columns);
    check(static_cast<int64_t>(workspace.size()) >= bytes, kBackward, "workspace",
          fmt::format("{} bytes", bytes), fmt::format("{} bytes", workspace.size()));
    check(reinterpret_cast<uintptr_t>(workspace.data()) % alignof(float) == 0, kBackward,
          "workspace", "memory aligned for f32", "an odd address");
  }
  detail::rms_norm_backward_cpu(dinput, dweight, dout, dresidual, input, inverse_rms, weight,
                                reinterpret_cast<float*>(workspace.data()));
}

int64_t rms_norm_backward_workspace_bytes(int64_t rows, int64_t columns) {
  const int64_t tiles = tile_count(rows, detail::rms_norm_backward_tile_rows(rows));
  return tiles * columns * static_cast<int64_t>(sizeof(float));
}

}  // namespace flashloom
