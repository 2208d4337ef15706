// Products and exponentials of attention tiles. Included once per target.
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

#include "flashloom/ops/attention/cpu/attention_cpu_problem.h"
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

/// out[r][lane] = sum over depth of grouped[row + r] panel[.][lane], kTileRows rows of NV vectors
/// of a panel of kPanel.
template <int NV, int kPanel = NV>
HWY_INLINE void score_block(const float* HWY_RESTRICT grouped, int64_t tile_rows,
                            const float* HWY_RESTRICT panel, int64_t groups,
                            float* HWY_RESTRICT out, int64_t out_stride) {
  const Lanes d;
  constexpr int kWidth = kPanel * kLanes;
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

/// panel[depth][lane] = scale[lane] panel + sum over rows [first, last) of grouped[row][depth]
/// weights[row][lane], for all depths and NV vectors of a panel of kPanel. `scale` may be null (1).
template <int NV, int kPanel = NV>
HWY_INLINE void accumulate_panel(float* HWY_RESTRICT panel, const float* HWY_RESTRICT scale,
                                 const float* HWY_RESTRICT grouped, int64_t tile_rows,
                                 int64_t groups, const float* HWY_RESTRICT weights,
                                 int64_t weight_stride, int64_t first, int64_t last) {
  const Lanes d;
  constexpr int kWidth = kPanel * kLanes;
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

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
