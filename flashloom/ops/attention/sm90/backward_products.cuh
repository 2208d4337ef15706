#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/panel_layout.h"
#include "flashloom/cuda/tile/shared_layout.h"

// Matrix products of the backward kernels, by a warpgroup: issued and committed, not waited for.
// Tiles lie in shared memory as the copy engine leaves them, in panels of 64 columns if nothing
// else is said.

namespace flashloom::sm90 {

/// What follows from a value is computed behind this place. The compiler otherwise computes the
/// descriptors of a tile that stays before the loop, masks before they are needed, and spills them.
__device__ __forceinline__ uint32_t compute_here(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

using WidePanels = cuda::PanelLayout<128>;

/// d (64 x kN) = a b^T over kDim columns; a and b are rows of tiles of `kRowsA` and `kRowsB` rows.
template <class T, int kDim, int kRowsA, int kRowsB, int kN, class Panels = WidePanels>
__device__ __forceinline__ void issue_rows_by_rows(float (&d)[kN / 2], uint32_t a, uint32_t b) {
  using namespace cuda;
  const uint64_t left = Panels::k_major(a);
  const uint64_t right = Panels::k_major(b);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    Wgmma<T, kN>::template from_shared<Major::kReduced, Major::kReduced>(
        d, left + (Panels::k_major_step(step, kRowsA) >> 4),
        right + (Panels::k_major_step(step, kRowsB) >> 4), step != 0);
  }
  wgmma_commit();
}

/// d (64 x kN) = a b^T over kDim columns; a in registers, b rows of a tile of kN rows.
template <class T, int kDim, int kN, class Panels = WidePanels>
__device__ __forceinline__ void issue_registers_by_rows(float (&d)[kN / 2],
                                                        const uint32_t (&a)[kDim / 16][4],
                                                        uint32_t b) {
  using namespace cuda;
  const uint64_t right = Panels::k_major(b);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    Wgmma<T, kN>::template from_registers<Major::kReduced>(
        d, a[step][0], a[step][1], a[step][2], a[step][3],
        right + (Panels::k_major_step(step, kN) >> 4), step != 0);
  }
  wgmma_commit();
}

/// d (64 x kDim) += a (64 x kReduced, registers) b (rows of a tile of kReduced rows).
template <class T, int kDim, int kReduced, class Panels = WidePanels>
__device__ __forceinline__ void issue_registers_by_tile(float (&d)[kDim / 2],
                                                        const uint32_t (&a)[kReduced / 4],
                                                        uint32_t b) {
  using namespace cuda;
  const uint64_t right = Panels::mn_major(b, kReduced);
#pragma unroll
  for (int step = 0; step < kReduced / 16; ++step) {
    Wgmma<T, kDim>::template from_registers<Major::kOther>(
        d, a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3],
        right + (Panels::mn_major_step(step) >> 4), 1);
  }
  wgmma_commit();
}

/// d (64 x kN) = a^T b, or that much more; both tiles of kReduced rows.
template <class T, int kReduced, int kN, bool kAdds = false, class PanelsA = WidePanels,
          class PanelsB = WidePanels>
__device__ __forceinline__ void issue_columns_by_columns(float (&d)[kN / 2], uint32_t a,
                                                         uint32_t b) {
  using namespace cuda;
  const uint64_t left = PanelsA::mn_major(a, kReduced);
  const uint64_t right = PanelsB::mn_major(b, kReduced);
#pragma unroll
  for (int step = 0; step < kReduced / 16; ++step) {
    Wgmma<T, kN>::template from_shared<Major::kOther, Major::kOther>(
        d, left + (PanelsA::mn_major_step(step) >> 4), right + (PanelsB::mn_major_step(step) >> 4),
        kAdds || step != 0);
  }
  wgmma_commit();
}

/// Zeroes rows [first, rows) of a tile of kPanels panels, which hold another sequence's data or
/// padding: 0 times a NaN would reach the sums. Every warpgroup that reads the tile does it.
/// `kShort`: in few instructions, since it is seldom run and lies in a loop.
template <int kPanels, class Panels = WidePanels, bool kShort = false>
__device__ __forceinline__ void zero_rows(char* tile, int32_t first, int32_t rows,
                                          uint32_t barrier) {
  const int32_t chunks = (rows - first) * static_cast<int32_t>(Panels::kRowBytes / 16);
  auto zero = [&](int32_t i) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      *reinterpret_cast<uint4*>(tile + p * Panels::bytes(rows) + first * Panels::kRowBytes +
                                i * 16) = make_uint4(0, 0, 0, 0);
    }
  };
  if constexpr (kShort) {
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x % 128); i < chunks; i += 128) {
      zero(i);
    }
  } else {
    for (int32_t i = static_cast<int32_t>(threadIdx.x % 128); i < chunks; i += 128) {
      zero(i);
    }
  }
  cuda::fence_async_shared();
  cuda::named_barrier_sync(barrier, 128, {"a consumer", "rows cleared"});
}

}  // namespace flashloom::sm90
