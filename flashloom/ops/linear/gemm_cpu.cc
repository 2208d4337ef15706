#include "flashloom/ops/linear/gemm_cpu.h"

#include <algorithm>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm_tile.h"

namespace flashloom {
namespace {

// Up to here dot products of unpacked rows are faster than packing b.
constexpr int64_t kFewRows = 8;
constexpr int64_t kDotColumns = 64;
// A tile packs its part of b once for all its rows, so it is high: 512 rows spend 1% on packing.
constexpr int64_t kTileRows = 512;
constexpr int64_t kMinTileRows = 96;
constexpr int64_t kMinTiles = 6;  // enough for a few threads to share evenly
// Multiple of all register tiles.
constexpr int64_t kRowUnit = 12;

GemmOperand operand(const ConstTensorView& view, bool rows_are_columns) {
  // A matrix of one row may carry any stride.
  const int64_t stride = view.dim(0) > 1 ? view.stride(0) : std::max<int64_t>(1, view.dim(1));
  return rows_are_columns ? GemmOperand{view.as<float>(), 1, stride}
                          : GemmOperand{view.as<float>(), stride, 1};
}

// Where the tiles of an (m, n) matrix lie: a function of shapes alone, so are the bits.
struct Tiling {
  int64_t rows;
  int64_t columns;

  Tiling(int64_t m, int64_t n, bool packs_a) {
    // Narrow tiles share the columns of a small matrix evenly. Where a is packed too, for every
    // tile, they are wide.
    columns =
        packs_a || n >= 8 * kGemmMaxTileColumns ? kGemmMaxTileColumns : kGemmMaxTileColumns / 2;
    const int64_t strips = tile_count(n, columns);
    int64_t cuts = tile_count(m, kTileRows);
    while (cuts * strips < kMinTiles && tile_count(m, cuts + 1) >= kMinTileRows) {
      ++cuts;
    }
    rows = tile_count(tile_count(m, cuts), kRowUnit) * kRowUnit;
  }
};

// What is left when there is nothing to multiply.
void copy_input(const GemmOutput& output, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    float* out = output.out + i * output.out_stride;
    const float* in = output.in + i * output.in_stride;
    for (int64_t j = 0; j < columns; ++j) {
      out[j] = output.beta == 0 ? 0.0f : output.beta * in[j];
    }
  }
}

}  // namespace

void gemm_sum_cpu(TensorView c, std::span<const GemmTerm> terms, float beta, ConstTensorView bias) {
  const int64_t m = c.dim(0);
  const int64_t n = c.dim(1);
  if (m == 0 || n == 0) {
    return;
  }
  GemmOutput output = {.out = c.as<float>(),
                       .out_stride = c.stride(0),
                       .in = c.as<float>(),
                       .in_stride = c.stride(0),
                       .beta = beta};
  if (bias) {
    output.in = bias.as<float>();
    output.in_stride = 0;
    output.beta = 1;
  }
  std::vector<GemmProduct> products;
  bool packs_a = false;
  bool dots = m <= kFewRows;
  for (const GemmTerm& term : terms) {
    const int64_t depth = term.a.dim(term.transpose_a ? 0 : 1);
    if (depth == 0) {
      continue;
    }
    products.push_back({.a = operand(term.a, term.transpose_a),
                        .b = operand(term.b, !term.transpose_b),
                        .depth = depth,
                        .alpha = term.alpha});
    packs_a = packs_a || term.transpose_a;
    dots = dots && !term.transpose_a && term.transpose_b;
  }
  if (products.empty()) {
    copy_input(output, m, n);
    return;
  }
  if (dots) {
    parallel_for(tile_count(n, kDotColumns), [&](int64_t strip) {
      const int64_t j = strip * kDotColumns;
      gemm_tile_of_dots(output, products, {0, m, j, std::min(kDotColumns, n - j)});
    });
    return;
  }
  const Tiling tiling(m, n, packs_a);
  const int64_t strips = tile_count(n, tiling.columns);
  parallel_for(tile_count(m, tiling.rows) * strips, [&](int64_t tile) {
    const int64_t i = tile / strips * tiling.rows;
    const int64_t j = tile % strips * tiling.columns;
    gemm_tile(output, products,
              {i, std::min(tiling.rows, m - i), j, std::min(tiling.columns, n - j)});
  });
}

}  // namespace flashloom
