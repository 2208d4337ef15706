#include "flashloom/ops/linear_cross_entropy/sparse_rows.h"

// foreach_target.h compiles this file once a target; it must come before Highway's other headers.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/linear_cross_entropy/sparse_rows_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on
#include "flashloom/ops/vector_math/storage-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

int64_t find(const float* logits, int64_t count, float threshold, int32_t* found) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto limit = hn::Set(d, threshold);
  int64_t hits = 0;
  for (int64_t i = 0; i < count; i += lanes) {
    // Nearly every vector holds none.
    if (i + lanes <= count && hn::AllFalse(d, hn::Ge(hn::LoadU(d, logits + i), limit))) {
      continue;
    }
    for (int64_t j = i; j < i + lanes && j < count; ++j) {
      if (logits[j] >= threshold) {
        found[hits++] = static_cast<int32_t>(j);
      }
    }
  }
  return hits;
}

// Four rows at a time, so that the sum is read and written once for them.
void add(float* sum, int64_t columns, const float* matrix, int64_t stride, const int32_t* index,
         const float* factors, int64_t count) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const float* rows[4];
    for (int j = 0; j < 4; ++j) {
      rows[j] = matrix + index[k + j] * stride;
    }
    for_vectors(static_cast<size_t>(columns), [&](auto d, size_t i) HWY_ATTR {
      auto total = hn::LoadU(d, sum + i);
      for (int j = 0; j < 4; ++j) {
        total = hn::MulAdd(hn::LoadU(d, rows[j] + i), hn::Set(d, factors[k + j]), total);
      }
      hn::StoreU(total, d, sum + i);
    });
  }
  for (; k < count; ++k) {
    const float* row = matrix + index[k] * stride;
    for_vectors(static_cast<size_t>(columns), [&](auto d, size_t i) HWY_ATTR {
      const auto total =
          hn::MulAdd(hn::LoadU(d, row + i), hn::Set(d, factors[k]), hn::LoadU(d, sum + i));
      hn::StoreU(total, d, sum + i);
    });
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(find);
HWY_EXPORT(add);

int64_t find_logits(const float* logits, int64_t count, float threshold, int32_t* found) {
  return HWY_DYNAMIC_DISPATCH(find)(logits, count, threshold, found);
}

void add_rows(float* sum, int64_t columns, const float* matrix, int64_t stride,
              const int32_t* index, const float* factors, int64_t count) {
  HWY_DYNAMIC_DISPATCH(add)(sum, columns, matrix, stride, index, factors, count);
}

}  // namespace flashloom
#endif  // HWY_ONCE
