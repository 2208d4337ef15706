#include "flashloom/ops/lora_linear/lora_linear_cpu.h"

#include <array>
#include <vector>

#include "flashloom/core/function_ref.h"
#include "flashloom/ops/linear/gemm.h"

namespace flashloom {
namespace {

// True if the rows of `next` follow those of `rows` in one tensor.
bool continues(const ConstTensorView& rows, const ConstTensorView& next) {
  return next.stride(0) == rows.stride(0) &&
         next.as<float>() == rows.as<float>() + rows.dim(0) * rows.stride(0);
}

// Calls body(first rank, rows) for each run of matrices of `part` that are rows of one tensor;
// `part(i)` is absent where projection i has no adapter.
template <class View>
void for_each_run(size_t count, FunctionRef<View(size_t)> part,
                  FunctionRef<void(int64_t, View)> body) {
  int64_t first = 0;
  View run;
  for (size_t i = 0; i < count; ++i) {
    const View rows = part(i);
    if (!rows || rows.dim(0) == 0) {
      continue;
    }
    if (run && continues(run, rows)) {
      run.shape[0] += rows.dim(0);
      continue;
    }
    if (run) {
      body(first, run);
      first += run.dim(0);
    }
    run = rows;
  }
  if (run) {
    body(first, run);
  }
}

}  // namespace

int64_t lora_linear_adapter_passes(std::span<const LoraProjection> projections) {
  int64_t passes = 0;
  for_each_run<ConstTensorView>(
      projections.size(), [&](size_t i) { return projections[i].a; },
      [&](int64_t, ConstTensorView) { ++passes; });
  return passes;
}

void lora_linear_forward_cpu(std::span<const TensorView> y, TensorView hidden, ConstTensorView x,
                             std::span<const LoraProjection> projections) {
  for_each_run<ConstTensorView>(
      projections.size(), [&](size_t i) { return projections[i].a; },
      [&](int64_t first, ConstTensorView a) {
        gemm(hidden.slice(1, first, a.dim(0)), x, a, {.transpose_b = true});
      });
  int64_t first = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    std::array<GemmTerm, 2> terms = {{{.a = x, .b = p.weight, .transpose_b = true}}};
    if (p.a) {
      const int64_t rank = p.a.dim(0);
      terms[1] = {
          .a = hidden.slice(1, first, rank), .b = p.b, .transpose_b = true, .alpha = p.scale};
      first += rank;
    }
    gemm_sum(y[i], std::span(terms).first(p.a ? 2 : 1), 0, p.bias);
  }
}

void lora_linear_backward_cpu(TensorView dx, std::span<const LoraGradients> gradients,
                              TensorView dhidden, std::span<const ConstTensorView> dy,
                              ConstTensorView x, ConstTensorView hidden,
                              std::span<const LoraProjection> projections, bool accumulate_input) {
  std::vector<GemmTerm> terms;  // of dx
  int64_t first = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    terms.push_back({.a = dy[i], .b = p.weight});
    if (p.a) {
      const int64_t rank = p.a.dim(0);
      gemm(gradients[i].db, dy[i], hidden.slice(1, first, rank),
           {.transpose_a = true, .alpha = p.scale, .beta = 1});
      gemm(dhidden.slice(1, first, rank), dy[i], p.b, {.alpha = p.scale});
      first += rank;
    }
  }
  for_each_run<TensorView>(
      projections.size(),
      [&](size_t i) { return projections[i].a ? gradients[i].da : TensorView(); },
      [&](int64_t run_first, TensorView da) {
        gemm(da, dhidden.slice(1, run_first, da.dim(0)), x, {.transpose_a = true, .beta = 1});
      });
  if (dx) {
    for_each_run<ConstTensorView>(
        projections.size(), [&](size_t i) { return projections[i].a; },
        [&](int64_t run_first, ConstTensorView a) {
          terms.push_back({.a = dhidden.slice(1, run_first, a.dim(0)), .b = a});
        });
    gemm_sum(dx, terms, accumulate_input ? 1.0f : 0.0f);
  }
}

}  // namespace flashloom
