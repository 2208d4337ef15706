#include <algorithm>
#include <array>
#include <cmath>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/lora_linear/lora_linear_cpu.h"

namespace flashloom {
namespace {

// Rows of B A that are made at a time: enough for the product to be fast, and in the second cache.
constexpr int64_t kRows = 48;

// Row n of the frozen weight, in `line` if it has to be converted.
const float* weight_row(const LoraProjection& p, int64_t n, float* line) {
  if (p.blocks) {
    p.blocks.format->decode(p.blocks.row(n), 0, p.blocks.columns, line);
    return line;
  }
  const int64_t at = n * p.weight.stride(0);
  if (p.weight.dtype == DType::f32) {
    return p.weight.as<float>() + at;
  }
  const bf16* row = p.weight.as<bf16>() + at;
  std::transform(row, row + p.weight.dim(1), line, [](bf16 x) { return static_cast<float>(x); });
  return line;
}

// |w + d|, in sums that stand side by side so that a compiler can use vectors.
float norm_of_sum(const float* w, const float* d, int64_t count) {
  constexpr int64_t kSums = 16;
  std::array<float, kSums> sums = {};
  int64_t k = 0;
  for (; k + kSums <= count; k += kSums) {
    for (int64_t i = 0; i < kSums; ++i) {
      const float x = w[k + i] + d[k + i];
      sums[i] += x * x;
    }
  }
  for (; k < count; ++k) {
    const float x = w[k] + d[k];
    sums[0] += x * x;
  }
  double total = 0;
  for (const float sum : sums) {
    total += sum;
  }
  return static_cast<float>(std::sqrt(total));
}

}  // namespace

int64_t dora_scratch_columns(int64_t inputs) {
  return (kRows + 1) * inputs;
}

void dora_row_norms_cpu(TensorView norms, const LoraProjection& p, TensorView scratch) {
  const int64_t outputs = p.outputs();
  const int64_t inputs = p.inputs();
  parallel_for_workers(tile_count(outputs, kRows), [&](int64_t tile, int worker) {
    float* line = scratch.as<float>() + worker * scratch.stride(0);
    const int64_t first = tile * kRows;
    const int64_t count = std::min(kRows, outputs - first);
    const TensorView product(line + inputs, {count, inputs});
    gemm(product, p.b.slice(0, first, count), p.a, {.alpha = p.scale});
    for (int64_t i = 0; i < count; ++i) {
      norms.as<float>()[first + i] =
          norm_of_sum(weight_row(p, first + i, line), product.as<float>() + i * inputs, inputs);
    }
  });
}

}  // namespace flashloom
