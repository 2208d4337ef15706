// Products, exponentials and transposes of attention tiles. Included once per target.
//
// A "panel" holds W = NV x lanes rows of one side of the scores transposed, (depth, W): its rows
// are the lanes of vectors. A "grouped" tile holds rows of the other side as (depth / 16, rows,
// 16): its elements are broadcast. So no product ever reduces across lanes, and the softmax of a
// panel of queries is vertical.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_TILE_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_TILE_MATH_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_TILE_MATH_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_TILE_MATH_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "flashloom/ops/attention/cpu/attention_cpu_problem.h"
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Lanes = hn::ScalableTag<float>;
using Vector = hn::Vec<Lanes>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Lanes()));

// Rows of a register tile of NV vectors: rows x NV accumulators, NV vectors of the panel and one
// broadcast fill the 16 vector registers of AVX2 (32 of AVX-512 and NEON) and hide the latency of a
// multiply-add (4 cycles, two a cycle: 8 in flight).
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kTileRows = 8;
constexpr int kGroupRows = 12;
#else
constexpr int kTileRows = 4;
constexpr int kGroupRows = kLanes == 8 ? 6 : 3;
#endif
constexpr int kGroupVectors = kDepthGroup / kLanes;  // vectors of a group of depth
static_assert(kDepthGroup % kLanes == 0);
static_assert(kMaxTileRows % kTileRows == 0 && kMaxTileRows % kGroupRows == 0);

/// 2^x for x <= 0.5 within 2 ulp; 0 below -126.5, also for -inf.
///
/// x = n + r with |r| <= 1/2; 2^r is a polynomial fitted to |r| <= 0.5 (largest relative error
/// 2e-9 before rounding), 2^n is put together from bits.
HWY_INLINE Vector exp2_f32(Lanes d, Vector x) {
  const hn::RebindToSigned<Lanes> di;
  const auto clamped = hn::Max(x, hn::Set(d, -127.0f));
  const auto n = hn::Round(clamped);
  const auto r = hn::Sub(clamped, n);
  auto p = hn::Set(d, 1.534581184e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.339993122e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 9.618488958e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.550328777e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.402264689e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.931472057e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::Mul(p, hn::BitCast(d, power));
}

/// out[r][lane] = sum over depth of grouped[row + r] panel[.][lane], kTileRows rows of W lanes.
template <int NV>
HWY_INLINE void score_block(const float* HWY_RESTRICT grouped, int64_t tile_rows,
                            const float* HWY_RESTRICT panel, int64_t groups,
                            float* HWY_RESTRICT out, int64_t out_stride) {
  const Lanes d;
  constexpr int kWidth = NV * kLanes;
  Vector sums[kTileRows][NV];
  for (auto& row : sums) {
    for (auto& sum : row) {
      sum = hn::Zero(d);
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    const float* HWY_RESTRICT x = grouped + g * tile_rows * kDepthGroup;
    const float* HWY_RESTRICT y = panel + g * kDepthGroup * kWidth;
#pragma GCC unroll 2
    for (int64_t k = 0; k < kDepthGroup; ++k) {
      Vector lanes[NV];
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        lanes[c] = hn::Load(d, y + k * kWidth + c * kLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        const auto element = hn::Set(d, x[r * kDepthGroup + k]);
#pragma GCC unroll 4
        for (int c = 0; c < NV; ++c) {
          sums[r][c] = hn::MulAdd(element, lanes[c], sums[r][c]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < NV; ++c) {
      hn::Store(sums[r][c], d, out + r * out_stride + c * kLanes);
    }
  }
}

#if HWY_TARGET == HWY_AVX3
#define FLASHLOOM_BF16_PAIRS 1

/// Scores from bf16 as it is stored, two of the depth a lane: (pairs / 16, rows, 16) by (pairs, W).
/// out[r][lane] = scale (sum over pairs of both products), rows [first, last), multiples of
/// kTileRows.
///
/// The products of bf16 are exact in f32 and so are added in f32, at twice the rate of f32
/// multiply-adds (in registers, on a Zen 4 core shared with other work: 99 to 49 GFLOP/s). Not
/// inlined: its instructions are those of machines on which bf16_pairs_available().
template <int NV>
__attribute__((noinline, target("avx512bf16"))) void score_pairs(
    const float* HWY_RESTRICT grouped, int64_t tile_rows, const float* HWY_RESTRICT panel,
    int64_t groups, float scale, int64_t first, int64_t last, float* HWY_RESTRICT out,
    int64_t out_stride) {
  constexpr int kWidth = NV * kLanes;
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
template <int NV>
HWY_INLINE void score_rows(bool pairs, const float* HWY_RESTRICT grouped, int64_t tile_rows,
                           const float* HWY_RESTRICT panel, int64_t padded, float pair_scale,
                           int64_t first, int64_t last, float* HWY_RESTRICT out,
                           int64_t out_stride) {
#ifdef FLASHLOOM_BF16_PAIRS
  if (pairs) {
    score_pairs<NV>(grouped, tile_rows, panel, padded / kDepthGroup, pair_scale, first, last, out,
                    out_stride);
    return;
  }
#endif
  static_cast<void>(pairs);
  static_cast<void>(pair_scale);
  for (int64_t row = first; row < last; row += kTileRows) {
    score_block<NV>(grouped + row * kDepthGroup, tile_rows, panel, padded / kDepthGroup,
                    out + row * out_stride, out_stride);
  }
}

/// panel[depth][lane] = scale[lane] panel + sum over rows [first, last) of grouped[row][depth]
/// weights[row][lane], for all depths. `scale` may be null (1).
template <int NV>
HWY_INLINE void accumulate_panel(float* HWY_RESTRICT panel, const float* HWY_RESTRICT scale,
                                 const float* HWY_RESTRICT grouped, int64_t tile_rows,
                                 int64_t groups, const float* HWY_RESTRICT weights,
                                 int64_t weight_stride, int64_t first, int64_t last) {
  const Lanes d;
  constexpr int kWidth = NV * kLanes;
  for (int64_t strip = 0; strip < groups * kDepthGroup; strip += kTileRows) {
    const float* HWY_RESTRICT x =
        grouped + strip / kDepthGroup * tile_rows * kDepthGroup + strip % kDepthGroup;
    float* HWY_RESTRICT out = panel + strip * kWidth;
    Vector sums[kTileRows][NV];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        sums[r][c] = hn::Load(d, out + r * kWidth + c * kLanes);
        if (scale != nullptr) {
          sums[r][c] = hn::Mul(sums[r][c], hn::Load(d, scale + c * kLanes));
        }
      }
    }
#pragma GCC unroll 2
    for (int64_t k = first; k < last; ++k) {
      Vector lanes[NV];
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        lanes[c] = hn::Load(d, weights + k * weight_stride + c * kLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        const auto element = hn::Set(d, x[k * kDepthGroup + r]);
#pragma GCC unroll 4
        for (int c = 0; c < NV; ++c) {
          sums[r][c] = hn::MulAdd(element, lanes[c], sums[r][c]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < NV; ++c) {
        hn::Store(sums[r][c], d, out + r * kWidth + c * kLanes);
      }
    }
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

/// rows[r][16] += sum over k in [first, last) of weights[r][k] grouped[k][16], kGroupRows rows.
HWY_INLINE void accumulate_rows(float* HWY_RESTRICT rows, int64_t row_stride,
                                const float* HWY_RESTRICT weights, int64_t weight_stride,
                                const float* HWY_RESTRICT grouped, int64_t first, int64_t last) {
  const Lanes d;
  Vector sums[kGroupRows][kGroupVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kGroupRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kGroupVectors; ++c) {
      sums[r][c] = hn::LoadU(d, rows + r * row_stride + c * kLanes);
    }
  }
  for (int64_t k = first; k < last; ++k) {
    Vector lanes[kGroupVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kGroupVectors; ++c) {
      lanes[c] = hn::Load(d, grouped + k * kDepthGroup + c * kLanes);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kGroupRows; ++r) {
      const auto element = hn::Set(d, weights[r * weight_stride + k]);
#pragma GCC unroll 4
      for (int c = 0; c < kGroupVectors; ++c) {
        sums[r][c] = hn::MulAdd(element, lanes[c], sums[r][c]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kGroupRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kGroupVectors; ++c) {
      hn::StoreU(sums[r][c], d, rows + r * row_stride + c * kLanes);
    }
  }
}

/// A row of any storage as `padded` floats, zeros behind `width`.
inline void load_row(const std::byte* row, DType dtype, int64_t width, int64_t padded,
                     float* HWY_RESTRICT out) {
  const auto count = row == nullptr ? size_t{0} : static_cast<size_t>(width);
  if (count == 0) {
    width = 0;
  } else if (dtype == DType::f32) {
    std::memcpy(out, row, count * sizeof(float));
  } else if (dtype == DType::bf16) {
    const auto* in = reinterpret_cast<const bf16*>(row);
    for_vectors(count,
                [&](auto d, size_t i) HWY_ATTR { hn::StoreU(load_f32(d, in + i), d, out + i); });
  } else {
    const auto* in = reinterpret_cast<const f16*>(row);
    for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
      const hn::Rebind<hwy::float16_t, decltype(d)> d16;
      const auto half = hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(in + i));
      hn::StoreU(hn::PromoteTo(d, half), d, out + i);
    });
  }
  std::memset(out + width, 0, static_cast<size_t>(padded - width) * sizeof(float));
}

/// Writes `width` floats as any storage; with `accumulate` (f32 only) adds.
inline void store_row(std::byte* row, DType dtype, int64_t width, const float* HWY_RESTRICT values,
                      bool accumulate) {
  const auto count = static_cast<size_t>(width);
  if (dtype == DType::f32) {
    auto* out = reinterpret_cast<float*>(row);
    if (!accumulate) {
      std::memcpy(out, values, count * sizeof(float));
      return;
    }
    for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
      hn::StoreU(hn::Add(hn::LoadU(d, out + i), hn::LoadU(d, values + i)), d, out + i);
    });
  } else if (dtype == DType::bf16) {
    auto* out = reinterpret_cast<bf16*>(row);
    for_vectors(
        count, [&](auto d, size_t i) HWY_ATTR { store_f32(d, hn::LoadU(d, values + i), out + i); });
  } else {
    auto* out = reinterpret_cast<f16*>(row);
    for (size_t i = 0; i < count; ++i) {
      out[i] = f16(values[i]);
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Transposes 4 x 4 floats.
HWY_INLINE void transpose_4x4(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  const hn::FixedTag<float, 4> d;
  const hn::FixedTag<double, 2> dd;
  const auto a = hn::LoadU(d, in);
  const auto b = hn::LoadU(d, in + in_stride);
  const auto c = hn::LoadU(d, in + 2 * in_stride);
  const auto e = hn::LoadU(d, in + 3 * in_stride);
  const auto ab_low = hn::BitCast(dd, hn::InterleaveLower(d, a, b));
  const auto ab_high = hn::BitCast(dd, hn::InterleaveUpper(d, a, b));
  const auto ce_low = hn::BitCast(dd, hn::InterleaveLower(d, c, e));
  const auto ce_high = hn::BitCast(dd, hn::InterleaveUpper(d, c, e));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab_low, ce_low)), d, out);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab_low, ce_low)), d, out + out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab_high, ce_high)), d, out + 2 * out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab_high, ce_high)), d, out + 3 * out_stride);
}

#endif

/// out[column][row] = in[row][column], both sizes multiples of 4 (but in scalar code).
inline void transpose(const float* in, int64_t rows, int64_t columns, float* out) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      out[c * rows + r] = in[r * columns + c];
    }
  }
#else
  for (int64_t r = 0; r < rows; r += 4) {
    for (int64_t c = 0; c < columns; c += 4) {
      transpose_4x4(in + r * columns + c, columns, out + c * rows + r, rows);
    }
  }
#endif
}

/// Rows [first, first + count) of `rows` as a grouped tile of `tile_rows` rows, zeros behind them
/// up to a multiple of kTileRows.
inline void load_grouped(const CpuRows& rows, int64_t first, int64_t count, int64_t tile_rows,
                         int64_t width, int64_t padded, float* HWY_RESTRICT row,
                         float* HWY_RESTRICT out) {
  const Lanes d;
  for (int64_t i = 0; i < tile_rows; ++i) {
    if (i < count) {
      const float* values = row;
      const std::byte* source = rows.row(first + i);
      if (source != nullptr && rows.dtype == DType::f32 && width == padded) {
        values = reinterpret_cast<const float*>(source);
      } else {
        load_row(source, rows.dtype, width, padded, row);
      }
      for (int64_t g = 0; g < padded / kDepthGroup; ++g) {
        float* HWY_RESTRICT to = out + (g * tile_rows + i) * kDepthGroup;
        for (int c = 0; c < kDepthGroup; c += kLanes) {
          hn::Store(hn::LoadU(d, values + g * kDepthGroup + c), d, to + c);
        }
      }
    } else if (i < (count + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows) {
      for (int64_t g = 0; g < padded / kDepthGroup; ++g) {
        std::memset(out + (g * tile_rows + i) * kDepthGroup, 0, kDepthGroup * sizeof(float));
      }
    }
  }
}

/// Rows of bf16 two by two: (depth / 16, tile rows / 2, 16) of pairs (row 2 i, row 2 i + 1), zeros
/// behind the last up to a multiple of kMaxTileRows rows.
inline void load_row_pairs(const CpuRows& rows, int64_t first, int64_t count, int64_t tile_rows,
                           int64_t width, int64_t padded, float* HWY_RESTRICT out) {
  // Halves of a vector of f32; scalar code takes one at a time.
  const hn::RebindToUnsigned<Lanes> d32;
  const hn::Rebind<uint16_t, Lanes> d16;
  HWY_ALIGN uint16_t pieces[2][kDepthGroup];
  const int64_t end = (count + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows;
  for (int64_t i = 0; i < std::min(end, tile_rows); i += 2) {
    const std::byte* sources[2] = {i < count ? rows.row(first + i) : nullptr,
                                   i + 1 < count ? rows.row(first + i + 1) : nullptr};
    for (int64_t g = 0; g < padded; g += kDepthGroup) {
      const int64_t there = std::clamp<int64_t>(width - g, 0, kDepthGroup);
      for (int n = 0; n < 2; ++n) {
        std::memset(pieces[n], 0, sizeof(pieces[n]));
        if (sources[n] != nullptr) {
          std::memcpy(pieces[n], sources[n] + 2 * g, static_cast<size_t>(2 * there));
        }
      }
      float* HWY_RESTRICT to = out + (g * tile_rows / 2) + i / 2 * kDepthGroup;
      for (int c = 0; c < kDepthGroup; c += kLanes) {
        const auto even = hn::PromoteTo(d32, hn::LoadU(d16, pieces[0] + c));
        const auto odd = hn::PromoteTo(d32, hn::LoadU(d16, pieces[1] + c));
        hn::Store(hn::Or(even, hn::ShiftLeft<16>(odd)), d32, reinterpret_cast<uint32_t*>(to) + c);
      }
    }
  }
}

/// Rows [first, first + count) as a panel of `width_lanes` lanes times `scale`, zeros behind them.
inline void load_panel(const CpuRows& rows, int64_t first, int64_t count, int64_t width_lanes,
                       int64_t width, int64_t padded, float scale, float* HWY_RESTRICT temporary,
                       float* HWY_RESTRICT out) {
  const Lanes d;
  for (int64_t i = 0; i < width_lanes; ++i) {
    float* HWY_RESTRICT row = temporary + i * padded;
    if (i >= count) {
      std::memset(row, 0, static_cast<size_t>(padded) * sizeof(float));
      continue;
    }
    load_row(rows.row(first + i), rows.dtype, width, padded, row);
    if (scale == 1) {  // pairs of bf16 are not numbers: their bits must stay
      continue;
    }
    const auto factor = hn::Set(d, scale);
    for (int64_t c = 0; c < padded; c += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, row + c), factor), d, row + c);
    }
  }
  transpose(temporary, width_lanes, padded, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
