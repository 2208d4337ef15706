#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/linear.h"
#include "flashloom/ops/linear/reference_element.h"
#include "flashloom/ops/lora_linear/lora_linear.h"

namespace flashloom {

void lora_linear_forward_reference(std::span<const TensorView> y, TensorView hidden,
                                   ConstTensorView x, std::span<const LoraProjection> projections) {
  int64_t first = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    linear_forward_reference(y[i], x, p.weight, p.bias);
    if (p.a) {
      const TensorView h = hidden.slice(1, first, p.a.dim(0));  // (T, R)
      gemm_reference(h, x, p.a, {.transpose_b = true});
      gemm_reference(y[i], h, p.b, {.transpose_b = true, .alpha = p.scale, .beta = 1});
      first += p.a.dim(0);
    }
  }
}

void lora_linear_backward_reference(TensorView dx, std::span<const LoraGradients> gradients,
                                    TensorView dhidden, std::span<const ConstTensorView> dy,
                                    ConstTensorView x, ConstTensorView hidden,
                                    std::span<const LoraProjection> projections,
                                    bool accumulate_input) {
  int64_t first = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    const float beta = accumulate_input || i > 0 ? 1.0f : 0.0f;
    if (dx) {
      gemm_reference(dx, dy[i], p.weight, {.beta = beta});
    }
    if (!p.a) {
      continue;
    }
    const TensorView dh = dhidden.slice(1, first, p.a.dim(0));  // (T, R)
    gemm_reference(dh, dy[i], p.b, {.alpha = p.scale});
    gemm_reference(gradients[i].db, dy[i], hidden.slice(1, first, p.a.dim(0)),
                   {.transpose_a = true, .alpha = p.scale, .beta = 1});
    gemm_reference(gradients[i].da, dh, x, {.transpose_a = true, .beta = 1});
    if (dx) {
      gemm_reference(dx, dh, p.a, {.beta = 1});
    }
    first += p.a.dim(0);
  }
}

}  // namespace flashloom
