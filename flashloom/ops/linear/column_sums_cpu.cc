#include <algorithm>
#include <array>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/column_sums.h"

namespace flashloom {
namespace {

// A tile's sums stay in registers and its rows are whole cache lines.
constexpr int64_t kColumnTile = 64;

}  // namespace

void add_column_sums_cpu(TensorView dbias, ConstTensorView dy) {
  const int64_t rows = dy.dim(0);
  const int64_t columns = dy.dim(1);
  float* out = dbias.as<float>();
  const float* in = dy.as<float>();
  parallel_for(tile_count(columns, kColumnTile), [&](int64_t tile) {
    const int64_t first = tile * kColumnTile;
    const int64_t width = std::min(kColumnTile, columns - first);
    std::array<float, kColumnTile> sums = {};
    for (int64_t t = 0; t < rows; ++t) {
      const float* row = in + t * dy.stride(0) + first;
      for (int64_t j = 0; j < width; ++j) {
        sums[static_cast<size_t>(j)] += row[j];
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      out[first + j] += sums[static_cast<size_t>(j)];
    }
  });
}

}  // namespace flashloom
