#include <cmath>
#include <vector>

#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/linear.h"
#include "flashloom/ops/linear/reference_element.h"
#include "flashloom/ops/lora_linear/lora_linear.h"

namespace flashloom {
namespace {

// The projection with a weight of plain numbers, which `decoded` holds if it is in blocks.
LoraProjection plain(const LoraProjection& projection, std::vector<float>& decoded) {
  LoraProjection p = projection;
  if (p.blocks) {
    decoded = decoded_matrix(p.blocks);
    p.weight = ConstTensorView(decoded.data(), {p.blocks.rows, p.blocks.columns});
    p.blocks = {};
  }
  return p;
}

double factor(const LoraProjection& p, int64_t n) {
  const double norm = load_element(p.row_norms, n);
  return norm > 0 ? load_element(p.magnitude, n) / norm : 0;
}

// x_t . W_n + scale h_t . B_n
double adapted_product(const LoraProjection& p, ConstTensorView x, ConstTensorView h, int64_t t,
                       int64_t n) {
  double sum = 0;
  for (int64_t k = 0; k < x.dim(1); ++k) {
    sum += load_element(x, t, k) * load_element(p.weight, n, k);
  }
  for (int64_t r = 0; r < h.dim(1); ++r) {
    sum += p.scale * load_element(h, t, r) * load_element(p.b, n, r);
  }
  return sum;
}

}  // namespace

void lora_linear_forward_reference(std::span<const TensorView> y, TensorView hidden,
                                   ConstTensorView x, std::span<const LoraProjection> projections) {
  int64_t first = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    std::vector<float> decoded;
    const LoraProjection p = plain(projections[i], decoded);
    if (!p.a) {
      linear_forward_reference(y[i], x, p.weight, p.bias);
      continue;
    }
    const TensorView h = hidden.slice(1, first, p.a.dim(0));  // (T, R)
    gemm_reference(h, x, p.a, {.transpose_b = true});
    first += p.a.dim(0);
    if (!p.magnitude) {
      linear_forward_reference(y[i], x, p.weight, p.bias);
      gemm_reference(y[i], h, p.b, {.transpose_b = true, .alpha = p.scale, .beta = 1});
      continue;
    }
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int64_t n = 0; n < p.outputs(); ++n) {
        store_element(
            y[i], t, n,
            factor(p, n) * adapted_product(p, x, h, t, n) + (p.bias ? load_element(p.bias, n) : 0));
      }
    }
  }
}

void lora_linear_backward_reference(TensorView dx, std::span<const LoraGradients> gradients,
                                    TensorView dhidden, std::span<const ConstTensorView> all_dy,
                                    ConstTensorView x, ConstTensorView hidden,
                                    std::span<const LoraProjection> projections,
                                    bool accumulate_input) {
  int64_t first = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    std::vector<float> decoded;
    const LoraProjection p = plain(projections[i], decoded);
    ConstTensorView dy = all_dy[i];
    const int64_t tokens = dy.dim(0);
    std::vector<double> scaled;
    if (p.magnitude) {
      const ConstTensorView h = hidden.slice(1, first, p.a.dim(0));
      scaled.resize(static_cast<size_t>(dy.size()));
      const TensorView view(scaled.data(), {tokens, dy.dim(1)});
      for (int64_t n = 0; n < p.outputs(); ++n) {
        const double norm = load_element(p.row_norms, n);
        double sum = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          sum += load_element(dy, t, n) * adapted_product(p, x, h, t, n);
          store_element(view, t, n, factor(p, n) * load_element(dy, t, n));
        }
        store_element(gradients[i].dmagnitude, n,
                      load_element(gradients[i].dmagnitude, n) + (norm > 0 ? sum / norm : 0));
      }
      dy = view;
    }
    const float beta = accumulate_input || i > 0 ? 1.0f : 0.0f;
    if (dx) {
      gemm_reference(dx, dy, p.weight, {.beta = beta});
    }
    if (!p.a) {
      continue;
    }
    const TensorView dh = dhidden.slice(1, first, p.a.dim(0));  // (T, R)
    gemm_reference(dh, dy, p.b, {.alpha = p.scale});
    gemm_reference(gradients[i].db, dy, hidden.slice(1, first, p.a.dim(0)),
                   {.transpose_a = true, .alpha = p.scale, .beta = 1});
    gemm_reference(gradients[i].da, dh, x, {.transpose_a = true, .beta = 1});
    if (dx) {
      gemm_reference(dx, dh, p.a, {.beta = 1});
    }
    first += p.a.dim(0);
  }
}

void dora_row_norms_reference(TensorView norms, const LoraProjection& projection) {
  std::vector<float> decoded;
  const LoraProjection p = plain(projection, decoded);
  for (int64_t n = 0; n < p.outputs(); ++n) {
    double squares = 0;
    for (int64_t k = 0; k < p.inputs(); ++k) {
      double sum = load_element(p.weight, n, k);
      for (int64_t r = 0; r < p.a.dim(0); ++r) {
        sum += p.scale * load_element(p.b, n, r) * load_element(p.a, r, k);
      }
      squares += sum * sum;
    }
    store_element(norms, n, std::sqrt(squares));
  }
}

}  // namespace flashloom
