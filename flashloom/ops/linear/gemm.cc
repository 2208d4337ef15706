#include "flashloom/ops/linear/gemm.h"

#include <fmt/format.h>

#include "flashloom/core/check.h"
#include "flashloom/ops/linear/gemm_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "gemm";

void check_matrix(std::string_view argument, const ConstTensorView& view,
                  std::initializer_list<DType> dtypes = {DType::f32}) {
  check_shape(kOp, argument, view, {kAnySize, kAnySize});
  check_dtype(kOp, argument, view, dtypes);
  check_last_contiguous(kOp, argument, view);
  check_cpu(kOp, argument, view);
  check(view.dim(0) <= 1 || view.dim(1) == 0 || view.stride(0) >= view.dim(1), kOp, argument,
        fmt::format("rows at least {} apart", view.dim(1)), fmt::format("{}", view.stride(0)));
  check(view.data != nullptr || view.size() == 0, kOp, argument, "memory", "none");
}

void check_blocks(const BlockMatrix& blocks, int64_t rows, int64_t columns) {
  check(blocks.rows == rows && blocks.columns == columns, kOp, "b_blocks",
        fmt::format("({}, {})", rows, columns),
        fmt::format("({}, {})", blocks.rows, blocks.columns));
  const BlockFormat& format = *blocks.format;
  const int64_t group = format.group_elements;
  check(group >= 1 && group <= BlockFormat::kMaxGroup && format.block_elements % group == 0 &&
            format.decode != nullptr,
        kOp, "b_blocks", fmt::format("a format with groups of 1 to {}", BlockFormat::kMaxGroup),
        fmt::format("{} with groups of {}", format.name, group));
  check(columns % format.block_elements == 0, kOp, "b_blocks",
        fmt::format("rows of whole blocks of {}", format.block_elements),
        fmt::format("rows of {}", columns));
  check(blocks.data != nullptr || rows == 0, kOp, "b_blocks", "memory", "none");
}

}  // namespace

void gemm(TensorView c, ConstTensorView a, ConstTensorView b, const GemmOptions& options,
          Stream stream) {
  const GemmTerm term = {.a = a,
                         .b = b,
                         .transpose_a = options.transpose_a,
                         .transpose_b = options.transpose_b,
                         .alpha = options.alpha};
  gemm_sum(c, {&term, 1}, options.beta, {}, stream);
}

void gemm_sum(TensorView c, std::span<const GemmTerm> terms, float beta, ConstTensorView bias,
              Stream) {
  check_matrix("c", c);
  const int64_t m = c.dim(0);
  const int64_t n = c.dim(1);
  for (const GemmTerm& term : terms) {
    check_matrix("a", term.a);
    const int64_t k = term.a.dim(term.transpose_a ? 0 : 1);
    if (term.transpose_a) {
      check_shape(kOp, "a", term.a, {k, m});
    } else {
      check_shape(kOp, "a", term.a, {m, k});
    }
    if (term.b_blocks) {
      check_blocks(term.b_blocks, term.transpose_b ? n : k, term.transpose_b ? k : n);
      check(!term.b, kOp, "b", "nothing beside b_blocks", describe(term.b));
      continue;
    }
    check_matrix("b", term.b, {DType::f32, DType::bf16});
    if (term.transpose_b) {
      check_shape(kOp, "b", term.b, {n, k});
    } else {
      check_shape(kOp, "b", term.b, {k, n});
    }
  }
  if (bias) {
    check(beta == 0, kOp, "beta", "0 with a bias", fmt::format("{}", beta));
    check_shape(kOp, "bias", bias, {n});
    check_dtype(kOp, "bias", bias, {DType::f32});
    check_last_contiguous(kOp, "bias", bias);
    check_cpu(kOp, "bias", bias);
  }
  gemm_sum_cpu(c, terms, beta, bias);
}

}  // namespace flashloom
