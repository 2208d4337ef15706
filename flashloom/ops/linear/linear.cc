#include "flashloom/ops/linear/linear.h"

#include "flashloom/core/check.h"
#include "flashloom/ops/linear/column_sums.h"
#include "flashloom/ops/linear/gemm.h"

namespace flashloom {
namespace {

constexpr std::initializer_list<DType> kWeightTypes = {DType::f32, DType::bf16};

}  // namespace

void linear_forward(TensorView y, ConstTensorView x, ConstTensorView weight, ConstTensorView bias,
                    Stream stream) {
  constexpr std::string_view kOp = "linear_forward";
  check_tensor(kOp, "weight", weight, {kAnySize, kAnySize}, kWeightTypes);
  check_tensor(kOp, "x", x, {kAnySize, weight.dim(1)});
  check_tensor(kOp, "y", y, {x.dim(0), weight.dim(0)});
  if (bias) {
    check_tensor(kOp, "bias", bias, {weight.dim(0)});
  }
  const GemmTerm product = {.a = x, .b = weight, .transpose_b = true};
  gemm_sum(y, {&product, 1}, 0, bias, stream);
}

void linear_backward(TensorView dx, TensorView dweight, TensorView dbias, ConstTensorView dy,
                     ConstTensorView x, ConstTensorView weight,
                     const LinearBackwardOptions& options, Stream stream) {
  constexpr std::string_view kOp = "linear_backward";
  check_tensor(kOp, "dy", dy, {kAnySize, kAnySize});
  if (dx) {
    check_tensor(kOp, "weight", weight, {dy.dim(1), kAnySize}, kWeightTypes);
    check_tensor(kOp, "dx", dx, {dy.dim(0), weight.dim(1)});
  }
  if (dweight) {
    check_tensor(kOp, "x", x, {dy.dim(0), kAnySize});
    check_tensor(kOp, "dweight", dweight, {dy.dim(1), x.dim(1)});
  }
  if (dbias) {
    check_tensor(kOp, "dbias", dbias, {dy.dim(1)});
    add_column_sums_cpu(dbias, dy);
  }
  if (dx) {
    gemm(dx, dy, weight, {.beta = options.accumulate_input ? 1.0f : 0.0f}, stream);
  }
  if (dweight) {
    gemm(dweight, dy, x, {.transpose_a = true, .beta = 1}, stream);
  }
}

}  // namespace flashloom
