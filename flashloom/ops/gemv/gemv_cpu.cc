#include "flashloom/ops/gemv/gemv_cpu.h"

#include <algorithm>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/gemv/gemv_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

/// Four rows at a time: four streams from memory and one of x, which stays in the nearest cache;
/// two sums a row hide the latency of the additions.
template <class T>
void four_rows(const T* rows, int64_t stride, const float* x, int64_t columns, float* sums) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0;
  auto b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  const T* r0 = rows;
  const T* r1 = r0 + stride;
  const T* r2 = r1 + stride;
  const T* r3 = r2 + stride;
  int64_t k = 0;
  for (; k + 2 * lanes <= columns; k += 2 * lanes) {
    const auto x0 = hn::LoadU(d, x + k);
    const auto x1 = hn::LoadU(d, x + k + lanes);
    a0 = hn::MulAdd(load_f32(d, r0 + k), x0, a0);
    a1 = hn::MulAdd(load_f32(d, r1 + k), x0, a1);
    a2 = hn::MulAdd(load_f32(d, r2 + k), x0, a2);
    a3 = hn::MulAdd(load_f32(d, r3 + k), x0, a3);
    b0 = hn::MulAdd(load_f32(d, r0 + k + lanes), x1, b0);
    b1 = hn::MulAdd(load_f32(d, r1 + k + lanes), x1, b1);
    b2 = hn::MulAdd(load_f32(d, r2 + k + lanes), x1, b2);
    b3 = hn::MulAdd(load_f32(d, r3 + k + lanes), x1, b3);
  }
  const auto total = [&](auto a, auto b)
                         HWY_ATTR { return hn::GetLane(hn::SumOfLanes(d, hn::Add(a, b))); };
  sums[0] = total(a0, b0);
  sums[1] = total(a1, b1);
  sums[2] = total(a2, b2);
  sums[3] = total(a3, b3);
  for (; k < columns; ++k) {
    sums[0] += static_cast<float>(r0[k]) * x[k];
    sums[1] += static_cast<float>(r1[k]) * x[k];
    sums[2] += static_cast<float>(r2[k]) * x[k];
    sums[3] += static_cast<float>(r3[k]) * x[k];
  }
}

template <class T>
void rows_of(const T* matrix, int64_t stride, const float* x, int64_t columns, int64_t first,
             int64_t last, const detail::GemvEpilogue& epilogue) {
  for (int64_t row = first; row < last; row += 4) {
    // Behind the last row stands the last row again: short matrices take the same path.
    const int64_t count = std::min<int64_t>(4, last - row);
    float sums[4];
    if (count == 4) {
      four_rows(matrix + row * stride, stride, x, columns, sums);
      for (int64_t i = 0; i < 4; ++i) {
        epilogue.store(row + i, sums[i]);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        four_rows(matrix + (row + i) * stride, 0, x, columns, sums);
        epilogue.store(row + i, sums[0]);
      }
    }
  }
}

void tile(const ConstTensorView& matrix, const float* x, int64_t first, int64_t last,
          const detail::GemvEpilogue& epilogue) {
  matrix.dtype == DType::f32
      ? rows_of(matrix.as<float>(), matrix.stride(0), x, matrix.dim(1), first, last, epilogue)
      : rows_of(matrix.as<bf16>(), matrix.stride(0), x, matrix.dim(1), first, last, epilogue);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(tile);

namespace detail {

void gemv_cpu(const TensorView& y, const ConstTensorView& matrix, const ConstTensorView& x,
              const ConstTensorView& bias, const GemvOptions& options) {
  const GemvEpilogue epilogue = {y.as<float>(), bias ? bias.as<float>() : nullptr, options};
  const int64_t rows = matrix.dim(0);
  // 64 Ki elements (some 20 µs of memory traffic) a tile, in whole groups of four rows.
  const int64_t size = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, matrix.dim(1)) / 4) * 4;
  parallel_for(tile_count(rows, size), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(tile)
    (matrix, x.as<float>(), i * size, std::min(rows, (i + 1) * size), epilogue);
  });
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
