#include "flashloom/ops/gradient_norm/gradient_norm_cpu.h"

#include <algorithm>
#include <array>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/gradient_norm/gradient_norm_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

template <class T>
double sum_tile(const T* x, size_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d);
  auto s1 = hn::Zero(d);
  auto s2 = hn::Zero(d);
  auto s3 = hn::Zero(d);
  const auto add = [&](auto sum, size_t i) HWY_ATTR {
    const auto v = hn::PromoteTo(d, load_f32(df, x + i));
    return hn::MulAdd(v, v, sum);
  };
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    s0 = add(s0, i);
    s1 = add(s1, i + lanes);
    s2 = add(s2, i + 2 * lanes);
    s3 = add(s3, i + 3 * lanes);
  }
  const auto all = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
  double sum = hn::GetLane(hn::SumOfLanes(d, all));
  for (; i < count; ++i) {
    const auto v = static_cast<double>(static_cast<float>(x[i]));
    sum += v * v;
  }
  return sum;
}

double sum_of_tile(const ConstTensorView& x, int64_t first, int64_t last) {
  const auto count = static_cast<size_t>(last - first);
  return x.dtype == DType::f32 ? sum_tile(x.as<float>() + first, count)
                               : sum_tile(x.as<bf16>() + first, count);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(sum_of_tile);

namespace detail {
namespace {

// At most 256 tiles, so that the partial sums lie on the stack; at least 32,768 elements each, some
// 5 µs of work, against 2 µs to hand a tile out.
constexpr int64_t kTiles = 256;
constexpr int64_t kTileElements = 32768;

}  // namespace

double sum_of_squares_cpu(const ConstTensorView& gradient) {
  const int64_t count = gradient.size();
  const int64_t tile = std::max(kTileElements, tile_count(count, kTiles));
  std::array<double, kTiles> sums = {};
  parallel_for(tile_count(count, tile), [&](int64_t i) {
    sums[static_cast<size_t>(i)] =
        HWY_DYNAMIC_DISPATCH(sum_of_tile)(gradient, i * tile, std::min(count, (i + 1) * tile));
  });
  double sum = 0;
  for (const double part : sums) {
    sum += part;
  }
  return sum;
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
