#include <vector>

#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/reference_element.h"

namespace flashloom {

std::vector<float> decoded_matrix(const BlockMatrix& blocks) {
  std::vector<float> values(static_cast<size_t>(blocks.rows * blocks.columns));
  for (int64_t i = 0; i < blocks.rows; ++i) {
    blocks.format->decode(blocks.row(i), 0, blocks.columns, values.data() + i * blocks.columns);
  }
  return values;
}

void gemm_reference(TensorView c, ConstTensorView a, ConstTensorView b,
                    const GemmOptions& options) {
  const GemmTerm term = {.a = a,
                         .b = b,
                         .transpose_a = options.transpose_a,
                         .transpose_b = options.transpose_b,
                         .alpha = options.alpha};
  gemm_sum_reference(c, {&term, 1}, options.beta);
}

void gemm_sum_reference(TensorView c, std::span<const GemmTerm> blocked_terms, float beta,
                        ConstTensorView bias) {
  std::vector<GemmTerm> terms(blocked_terms.begin(), blocked_terms.end());
  std::vector<std::vector<float>> decoded;
  for (GemmTerm& term : terms) {
    if (term.b_blocks) {
      decoded.push_back(decoded_matrix(term.b_blocks));
      term.b = ConstTensorView(decoded.back().data(), {term.b_blocks.rows, term.b_blocks.columns});
    }
  }
  for (int64_t i = 0; i < c.dim(0); ++i) {
    for (int64_t j = 0; j < c.dim(1); ++j) {
      double total = beta == 0 ? 0 : beta * load_element(c, i, j);
      total += bias ? load_element(bias, j) : 0;
      for (const GemmTerm& term : terms) {
        const ConstTensorView a = term.transpose_a ? term.a.transpose(0, 1) : term.a;
        const ConstTensorView b = term.transpose_b ? term.b.transpose(0, 1) : term.b;
        double sum = 0;
        for (int64_t p = 0; p < a.dim(1); ++p) {
          sum += load_element(a, i, p) * load_element(b, p, j);
        }
        total += term.alpha * sum;
      }
      store_element(c, i, j, total);
    }
  }
}

}  // namespace flashloom
