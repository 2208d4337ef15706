#include "flashloom/ops/lora_linear/lora_linear_cpu.h"

#include <algorithm>
#include <array>
#include <vector>

#include "flashloom/core/function_ref.h"
#include "flashloom/core/parallel.h"
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

// y = x W^T + scale h B^T + bias.
void product(TensorView y, ConstTensorView x, ConstTensorView h, const LoraProjection& p,
             ConstTensorView bias) {
  std::array<GemmTerm, 2> terms = {
      {{.a = x, .b = p.weight, .transpose_b = true, .b_blocks = p.blocks}}};
  if (p.a) {
    terms[1] = {.a = h, .b = p.b, .transpose_b = true, .alpha = p.scale};
  }
  gemm_sum(y, std::span(terms).first(p.a ? 2 : 1), 0, bias);
}

constexpr int64_t kRowTile = 16;
constexpr int64_t kColumnTile = 128;

// magnitude / norm of an output.
float factor(const LoraProjection& p, int64_t n) {
  const float norm = p.row_norms.as<float>()[n];
  return norm > 0 ? p.magnitude.as<float>()[n] / norm : 0.0f;
}

// y = factor y + bias, column by column.
void scale_columns(TensorView y, const LoraProjection& p) {
  const int64_t tokens = y.dim(0);
  const int64_t outputs = y.dim(1);
  const float* bias = p.bias ? p.bias.as<float>() : nullptr;
  const int64_t strips = tile_count(outputs, kColumnTile);
  parallel_for(tile_count(tokens, kRowTile) * strips, [&](int64_t tile) {
    const int64_t first = tile % strips * kColumnTile;
    const int64_t count = std::min(kColumnTile, outputs - first);
    std::array<float, kColumnTile> factors;
    std::array<float, kColumnTile> addends = {};
    for (int64_t j = 0; j < count; ++j) {
      factors[j] = factor(p, first + j);
      addends[j] = bias != nullptr ? bias[first + j] : 0.0f;
    }
    const int64_t row = tile / strips * kRowTile;
    for (int64_t t = row; t < std::min(tokens, row + kRowTile); ++t) {
      float* out = y.as<float>() + t * y.stride(0) + first;
      for (int64_t j = 0; j < count; ++j) {
        out[j] = factors[j] * out[j] + addends[j];
      }
    }
  });
}

// `scaled` holds the products that the magnitude scales: adds their share to dmagnitude, and
// becomes factor dy. Each column is summed by one thread, rows in order.
void scale_gradient(TensorView scaled, TensorView dmagnitude, ConstTensorView dy,
                    const LoraProjection& p) {
  const int64_t tokens = dy.dim(0);
  const int64_t outputs = dy.dim(1);
  parallel_for(tile_count(outputs, kColumnTile), [&](int64_t tile) {
    const int64_t first = tile * kColumnTile;
    const int64_t count = std::min(kColumnTile, outputs - first);
    std::array<float, kColumnTile> factors;
    std::array<float, kColumnTile> sums = {};
    for (int64_t j = 0; j < count; ++j) {
      factors[j] = factor(p, first + j);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = dy.as<float>() + t * dy.stride(0) + first;
      float* to = scaled.as<float>() + t * scaled.stride(0) + first;
      for (int64_t j = 0; j < count; ++j) {
        sums[j] += from[j] * to[j];
        to[j] = factors[j] * from[j];
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      const float norm = p.row_norms.as<float>()[first + j];
      dmagnitude.as<float>()[first + j] += norm > 0 ? sums[j] / norm : 0.0f;
    }
  });
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
    const int64_t rank = p.a ? p.a.dim(0) : 0;
    const ConstTensorView h = p.a ? hidden.slice(1, first, rank) : TensorView();
    first += rank;
    if (p.magnitude) {
      product(y[i], x, h, p, {});
      scale_columns(y[i], p);
    } else {
      product(y[i], x, h, p, p.bias);
    }
  }
}

void lora_linear_backward_cpu(TensorView dx, std::span<const LoraGradients> gradients,
                              TensorView dhidden, std::span<const ConstTensorView> all_dy,
                              ConstTensorView x, ConstTensorView hidden,
                              std::span<const LoraProjection> projections, bool accumulate_input,
                              TensorView scratch) {
  std::vector<GemmTerm> terms;  // of dx
  int64_t first = 0;
  int64_t used = 0;  // numbers of scratch
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    ConstTensorView dy = all_dy[i];
    if (p.magnitude) {
      const TensorView scaled = scratch.reshape({scratch.size()})
                                    .slice(0, used, dy.size())
                                    .reshape({dy.dim(0), dy.dim(1)});
      used += dy.size();
      product(scaled, x, hidden.slice(1, first, p.a.dim(0)), p, {});
      scale_gradient(scaled, gradients[i].dmagnitude, dy, p);
      dy = scaled;
    }
    terms.push_back({.a = dy, .b = p.weight, .b_blocks = p.blocks});
    if (p.a) {
      const int64_t rank = p.a.dim(0);
      gemm(gradients[i].db, dy, hidden.slice(1, first, rank),
           {.transpose_a = true, .alpha = p.scale, .beta = 1});
      gemm(dhidden.slice(1, first, rank), dy, p.b, {.alpha = p.scale});
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
