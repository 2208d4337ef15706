#include "flashloom/ops/linear/gemm.h"

#include <fmt/format.h>

#include "flashloom/core/check.h"
#include "flashloom/ops/linear/gemm_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "gemm";

void check_matrix(std::string_view argument, const ConstTensorView& view) {
  check_shape(kOp, argument, view, {kAnySize, kAnySize});
  check_dtype(kOp, argument, view, {DType::f32});
  check_last_contiguous(kOp, argument, view);
  check_cpu(kOp, argument, view);
  check(view.dim(0) <= 1 || view.dim(1) == 0 || view.stride(0) >= view.dim(1), kOp, argument,
        fmt::format("rows at least {} apart", view.dim(1)), fmt::format("{}", view.stride(0)));
  check(view.data != nullptr || view.size() == 0, kOp, argument, "memory", "none");
}

}  // namespace

void gemm(TensorView c, ConstTensorView a, ConstTensorView b, const GemmOptions& options, Stream) {
  check_matrix("c", c);
  check_matrix("a", a);
  check_matrix("b", b);
  const int64_t m = c.dim(0);
  const int64_t n = c.dim(1);
  const int64_t k = a.dim(options.transpose_a ? 0 : 1);
  if (options.transpose_a) {
    check_shape(kOp, "a", a, {k, m});
  } else {
    check_shape(kOp, "a", a, {m, k});
  }
  if (options.transpose_b) {
    check_shape(kOp, "b", b, {n, k});
  } else {
    check_shape(kOp, "b", b, {k, n});
  }
  gemm_cpu(c, a, b, options);
}

}  // namespace flashloom
