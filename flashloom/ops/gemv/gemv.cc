#include "flashloom/ops/gemv/gemv.h"

#include "flashloom/core/check.h"
#include "flashloom/ops/gemv/gemv_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "gemv";

void check_vector(std::string_view argument, const ConstTensorView& view, int64_t size) {
  check_shape(kOp, argument, view, {size});
  check_dtype(kOp, argument, view, {DType::f32});
  check_contiguous(kOp, argument, view);
  check_cpu(kOp, argument, view);
}

}  // namespace

void gemv(TensorView y, ConstTensorView matrix, ConstTensorView x, ConstTensorView bias,
          const GemvOptions& options, Stream /*stream*/) {
  check_shape(kOp, "matrix", matrix, {kAnySize, kAnySize});
  check_dtype(kOp, "matrix", matrix, {DType::f32, DType::bf16});
  check_last_contiguous(kOp, "matrix", matrix);
  check_cpu(kOp, "matrix", matrix);
  check_vector("y", y, matrix.dim(0));
  check_vector("x", x, matrix.dim(1));
  if (bias) {
    check_vector("bias", bias, matrix.dim(0));
  }
  detail::gemv_cpu(y, matrix, x, bias, options);
}

}  // namespace flashloom
