// Products of attention tiles from bf16 as it is stored, and the choice between them and those of
// f32. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_TILE_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_TILE_PAIRS_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_TILE_PAIRS_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_TILE_PAIRS_INL_H_
#endif

#include <cstdint>

#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3
#define FLASHLOOM_BF16_PAIRS 1

/// Scores from bf16 as it is stored, two of the depth a lane: (pairs / 16, rows, 16) by (pairs, W).
/// out[r][lane] = scale (sum over pairs of both products), rows [first, last), multiples of
/// kTileRows, for NV vectors of a panel of kPanel.
///
/// The products of bf16 are exact in f32 and so are added in f32, at twice the rate of f32
/// multiply-adds (in registers, on a Zen 4 core shared with other work: 99 to 49 GFLOP/s). Not
/// inlined: its instructions are those of machines on which bf16_pairs_available().
template <int NV, int kPanel = NV>
__attribute__((noinline, target("avx512bf16"))) void score_pairs(
    const float* HWY_RESTRICT grouped, int64_t tile_rows, const float* HWY_RESTRICT panel,
    int64_t groups, float scale, int64_t first, int64_t last, float* HWY_RESTRICT out,
    int64_t out_stride) {
  constexpr int kWidth = kPanel * kLanes;
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t row = first; row < last; row += kTileRows) {
    __m512 sums[kTileRows][NV];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        sums[r][c] = _mm512_setzero_ps();
      }
    }
    for (int64_t g = 0; g < groups; ++g) {
      const float* HWY_RESTRICT x = grouped + (g * tile_rows + row) * kDepthGroup;
      const float* HWY_RESTRICT y = panel + g * kDepthGroup * kWidth;
#pragma GCC unroll 2
      for (int64_t k = 0; k < kDepthGroup; ++k) {
        __m512bh lanes[NV];
#pragma GCC unroll 4
        for (int c = 0; c < NV; ++c) {
          lanes[c] = (__m512bh)_mm512_load_ps(y + k * kWidth + c * kLanes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r) {
          const auto element = (__m512bh)_mm512_set1_ps(x[r * kDepthGroup + k]);
#pragma GCC unroll 4
          for (int c = 0; c < NV; ++c) {
            sums[r][c] = _mm512_dpbf16_ps(sums[r][c], element, lanes[c]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        _mm512_store_ps(out + (row + r) * out_stride + c * kLanes,
                        _mm512_mul_ps(sums[r][c], factor));
      }
    }
  }
}

/// Rows [first, last) of weights (rows, W) as bf16, two rows a lane: (rows / 2, W). Even bounds.
template <int NV>
__attribute__((noinline, target("avx512bf16"))) void pack_row_pairs(
    const float* HWY_RESTRICT weights, int64_t stride, int64_t first, int64_t last,
    float* HWY_RESTRICT out) {
  constexpr int kWidth = NV * kLanes;
  const auto widen = [](__m256bh half) __attribute__((target("avx512bf16"))) {
    return _mm512_cvtepu16_epi32((__m256i)half);
  };
  for (int64_t row = first; row < last; row += 2) {
    for (int c = 0; c < kWidth; c += kLanes) {
      const auto even = widen(_mm512_cvtneps_pbh(_mm512_load_ps(weights + row * stride + c)));
      const auto odd = widen(_mm512_cvtneps_pbh(_mm512_load_ps(weights + (row + 1) * stride + c)));
      _mm512_store_si512(out + row / 2 * kWidth + c,
                         _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
  }
}

/// accumulate_panel() of bf16, two rows at a time: (depth / 16, rows / 2, 16) by (rows / 2, W).
template <int NV>
__attribute__((noinline, target("avx512bf16"))) void accumulate_row_pairs(
    float* HWY_RESTRICT panel, const float* HWY_RESTRICT paired, int64_t tile_pairs, int64_t groups,
    const float* HWY_RESTRICT weights, int64_t first, int64_t last) {
  constexpr int kWidth = NV * kLanes;
  for (int64_t strip = 0; strip < groups * kDepthGroup; strip += kTileRows) {
    const float* HWY_RESTRICT x =
        paired + strip / kDepthGroup * tile_pairs * kDepthGroup + strip % kDepthGroup;
    float* HWY_RESTRICT out = panel + strip * kWidth;
    __m512 sums[kTileRows][NV];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        sums[r][c] = _mm512_load_ps(out + r * kWidth + c * kLanes);
      }
    }
#pragma GCC unroll 2
    for (int64_t k = first; k < last; ++k) {
      __m512bh lanes[NV];
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        lanes[c] = (__m512bh)_mm512_load_ps(weights + k * kWidth + c * kLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        const auto element = (__m512bh)_mm512_set1_ps(x[k * kDepthGroup + r]);
#pragma GCC unroll 4
        for (int c = 0; c < NV; ++c) {
          sums[r][c] = _mm512_dpbf16_ps(sums[r][c], element, lanes[c]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        _mm512_store_ps(out + r * kWidth + c * kLanes, sums[r][c]);
      }
    }
  }
}

inline bool bf16_pairs_available() {
  return __builtin_cpu_supports("avx512bf16") != 0;
}
#else
inline bool bf16_pairs_available() {
  return false;
}
#endif

/// Rows [first, last) of the scores of a panel and a grouped tile, both in f32, or both as pairs of
/// bf16, whose scale is applied here.
template <int NV, int kPanel = NV>
HWY_INLINE void score_rows(bool pairs, const float* HWY_RESTRICT grouped, int64_t tile_rows,
                           const float* HWY_RESTRICT panel, int64_t padded, float pair_scale,
                           int64_t first, int64_t last, float* HWY_RESTRICT out,
                           int64_t out_stride) {
#ifdef FLASHLOOM_BF16_PAIRS
  if (pairs) {
    score_pairs<NV, kPanel>(grouped, tile_rows, panel, padded / kDepthGroup, pair_scale, first,
                            last, out, out_stride);
    return;
  }
#endif
  static_cast<void>(pairs);
  static_cast<void>(pair_scale);
  for (int64_t row = first; row < last; row += kTileRows) {
    score_block<NV, kPanel>(grouped + row * kDepthGroup, tile_rows, panel, padded / kDepthGroup,
                            out + row * out_stride, out_stride);
  }
}

/// Adds weights^T rows to a panel: accumulate_panel() without a scale, or, with `paired` rows,
/// weights rounded to bf16 by way of `packed` (rows / 2, W).
template <int NV>
HWY_INLINE void accumulate_weighted(bool pairs, float* HWY_RESTRICT panel,
                                    const float* HWY_RESTRICT grouped,
                                    const float* HWY_RESTRICT paired, int64_t tile_rows,
                                    int64_t groups, const float* HWY_RESTRICT weights,
                                    int64_t weight_stride, float* HWY_RESTRICT packed,
                                    int64_t first, int64_t last) {
#ifdef FLASHLOOM_BF16_PAIRS
  if (pairs) {
    pack_row_pairs<NV>(weights, weight_stride, first, last, packed);
    accumulate_row_pairs<NV>(panel, paired, tile_rows / 2, groups, packed, first / 2, last / 2);
    return;
  }
#endif
  static_cast<void>(pairs);
  static_cast<void>(paired);
  static_cast<void>(packed);
  accumulate_panel<NV>(panel, nullptr, grouped, tile_rows, groups, weights, weight_stride, first,
                       last);
}

#undef FLASHLOOM_BF16_PAIRS

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
