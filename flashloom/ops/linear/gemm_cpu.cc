#include "flashloom/ops/linear/gemm_cpu.h"

#include <dnnl.h>
#include <omp.h>

#include <algorithm>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"

namespace flashloom {
namespace {

// Tiles of c. Their sizes depend on nothing but these constants, so neither do the bits.
constexpr int64_t kTileRows = 128;
constexpr int64_t kTileColumns = 192;

// oneDNN splits K between threads when it has several, which changes the order of the sums. While
// this object lives, it sees one.
class SingleThread {
 public:
  SingleThread() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }

  ~SingleThread() { omp_set_num_threads(threads_); }

  SingleThread(const SingleThread&) = delete;
  SingleThread& operator=(const SingleThread&) = delete;

 private:
  int threads_;
};

void scale(float* c, int64_t stride, int64_t rows, int64_t columns, float beta) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = c + i * stride;
    for (int64_t j = 0; j < columns; ++j) {
      row[j] = beta == 0 ? 0.0f : beta * row[j];
    }
  }
}

}  // namespace

void gemm_cpu(TensorView c, ConstTensorView a, ConstTensorView b, const GemmOptions& options) {
  const int64_t m = c.dim(0);
  const int64_t n = c.dim(1);
  const int64_t k = a.dim(options.transpose_a ? 0 : 1);
  if (m == 0 || n == 0) {
    return;
  }
  float* c_data = c.as<float>();
  const float* a_data = a.as<float>();
  const float* b_data = b.as<float>();
  if (k == 0) {
    scale(c_data, c.stride(0), m, n, options.beta);
    return;
  }
  // A matrix of one row may carry any stride; oneDNN asks for at least the width.
  const int64_t lda = std::max(a.stride(0), a.dim(1));
  const int64_t ldb = std::max(b.stride(0), b.dim(1));
  const int64_t ldc = std::max(c.stride(0), n);
  const int64_t column_tiles = tile_count(n, kTileColumns);
  parallel_for(tile_count(m, kTileRows) * column_tiles, [&](int64_t tile) {
    const int64_t i = tile / column_tiles * kTileRows;
    const int64_t j = tile % column_tiles * kTileColumns;
    const SingleThread single;
    const dnnl_status_t status = dnnl_sgemm(
        options.transpose_a ? 'T' : 'N', options.transpose_b ? 'T' : 'N',
        std::min(kTileRows, m - i), std::min(kTileColumns, n - j), k, options.alpha,
        a_data + (options.transpose_a ? i : i * lda), lda,
        b_data + (options.transpose_b ? j * ldb : j), ldb, options.beta, c_data + i * ldc + j, ldc);
    if (status != dnnl_success) {
      throw Error("gemm: oneDNN refused a matrix product");
    }
  });
}

}  // namespace flashloom
