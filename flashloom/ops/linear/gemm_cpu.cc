#include "flashloom/ops/linear/gemm_cpu.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm_tile.h"

namespace flashloom {
namespace {

// Up to here dot products of unpacked rows are faster than packing b.
constexpr int64_t kFewRows = 8;
constexpr int64_t kDotColumns = 64;
constexpr int64_t kMinTileRows = 96;
constexpr int64_t kMaxTileRows = 1024;
constexpr int64_t kRowUnit = 12;  // a multiple of the rows of every register tile

GemmOperand operand(const ConstTensorView& view, bool rows_are_columns) {
  // A matrix of one row may carry any stride.
  const int64_t stride = view.dim(0) > 1 ? view.stride(0) : std::max<int64_t>(1, view.dim(1));
  return rows_are_columns ? GemmOperand{view.data, 1, stride, view.dtype}
                          : GemmOperand{view.data, stride, 1, view.dtype};
}

// `rows_are_columns`: stored rows are the depth.
GemmOperand operand(const BlockMatrix& blocks, bool rows_are_columns) {
  return {.data = blocks.data,
          .row_stride = rows_are_columns ? 1 : blocks.columns,
          .depth_stride = rows_are_columns ? blocks.columns : 1,
          .dtype = DType::f32,
          .format = blocks.format,
          .block_row_bytes = blocks.row_bytes()};
}

// Cuts an (m, n) matrix into tiles that `threads` threads share evenly, but not into more than that
// needs: each tile packs its part of b once for its rows, and packs a, or reads it from a far
// cache, once for its columns. Each element is the same sum whatever its tile, so the bits do not
// depend on the cut (nor, therefore, on the threads).
struct Tiling {
  int64_t rows = kRowUnit;  // legal, until the search finds better
  int64_t columns = kGemmMaxTileColumns;

  Tiling(int64_t m, int64_t n, bool packs_a, int64_t threads) {
    // Work of packing an element, in multiplications of a row of a register tile: measured on
    // Zen 3 as about 0.3 cycles where one column of a row takes 1/16.
    constexpr double kPackB = 4.8;
    const double a_cost = packs_a ? 8 : 2.4;
    double least = std::numeric_limits<double>::infinity();
    for (const int64_t width : {kGemmMaxTileColumns, kGemmMaxTileColumns / 2}) {
      const int64_t strips = tile_count(n, width);
      for (int64_t cuts = tile_count(m, kMaxTileRows); cuts <= tile_count(m, kMinTileRows);
           ++cuts) {
        const int64_t height = tile_count(tile_count(m, cuts), kRowUnit) * kRowUnit;
        const int64_t tiles = tile_count(m, height) * strips;
        const double tile_rows = static_cast<double>(std::min(height, m));
        const double tile_columns = static_cast<double>(std::min(width, n));
        const double time = static_cast<double>(tile_count(tiles, threads)) * tile_rows *
                            tile_columns * (1 + kPackB / tile_rows + a_cost / tile_columns);
        if (time < least) {
          least = time;
          rows = height;
          columns = width;
        }
      }
    }
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
                        .b = term.b_blocks ? operand(term.b_blocks, !term.transpose_b)
                                           : operand(term.b, !term.transpose_b),
                        .depth = depth,
                        .alpha = term.alpha});
    packs_a = packs_a || term.transpose_a;
    dots = dots && !term.transpose_a && term.transpose_b && !term.b_blocks;
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
  const Tiling tiling(m, n, packs_a, thread_count());
  const int64_t strips = tile_count(n, tiling.columns);
  parallel_for(tile_count(m, tiling.rows) * strips, [&](int64_t tile) {
    const int64_t i = tile / strips * tiling.rows;
    const int64_t j = tile % strips * tiling.columns;
    gemm_tile(output, products,
              {i, std::min(tiling.rows, m - i), j, std::min(tiling.columns, n - j)});
  });
}

}  // namespace flashloom
