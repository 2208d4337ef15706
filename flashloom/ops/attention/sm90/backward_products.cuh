#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/narrow_layout.h"
#include "flashloom/cuda/tile/shared_layout.h"

// Matrix products of the backward kernels, by a warpgroup: issued and committed, not waited for.
// Tiles lie in shared memory as the copy engine leaves them.

namespace flashloom::sm90 {

/// What follows from a value is computed behind this place. The compiler otherwise computes the
/// descriptors of a tile that stays before the loop, masks before they are needed, and spills them.
__device__ __forceinline__ uint32_t compute_here(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// d (64 x kN) = a b^T over kDim columns, or that much more; a and b are rows of tiles of `kRowsA`
/// and `kRowsB` rows.
template <class T, int kDim, int kRowsA, int kRowsB, int kN, bool kAdds = false>
__device__ __forceinline__ void issue_rows_by_rows(float (&d)[kN / 2], uint32_t a, uint32_t b) {
  using namespace cuda;
  const uint64_t left = k_major_descriptor(a);
  const uint64_t right = k_major_descriptor(b);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    Wgmma<T, kN>::template from_shared<Major::kReduced, Major::kReduced>(
        d, left + (k_major_step(step, kRowsA) >> 4), right + (k_major_step(step, kRowsB) >> 4),
        kAdds || step != 0);
  }
  wgmma_commit();
}

/// d (64 x kN) = a b^T over kDim columns; a in registers, b rows of a tile of kN rows.
template <class T, int kDim, int kN>
__device__ __forceinline__ void issue_registers_by_rows(float (&d)[kN / 2],
                                                        const uint32_t (&a)[kDim / 16][4],
                                                        uint32_t b) {
  using namespace cuda;
  const uint64_t right = k_major_descriptor(b);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    Wgmma<T, kN>::template from_registers<Major::kReduced>(
        d, a[step][0], a[step][1], a[step][2], a[step][3], right + (k_major_step(step, kN) >> 4),
        step != 0);
  }
  wgmma_commit();
}

/// d (64 x kDim) += a (64 x kReduced, registers) b (rows of a tile of kReduced rows).
template <class T, int kDim, int kReduced>
__device__ __forceinline__ void issue_registers_by_tile(float (&d)[kDim / 2],
                                                        const uint32_t (&a)[kReduced / 4],
                                                        uint32_t b) {
  using namespace cuda;
  const uint64_t right = mn_major_descriptor(b, kReduced);
#pragma unroll
  for (int step = 0; step < kReduced / 16; ++step) {
    Wgmma<T, kDim>::template from_registers<Major::kOther>(d, a[4 * step], a[4 * step + 1],
                                                           a[4 * step + 2], a[4 * step + 3],
                                                           right + (mn_major_step(step) >> 4), 1);
  }
  wgmma_commit();
}

/// d (64 x kN) = a^T b, or that much more; both tiles of kReduced rows, b in narrow panels if
/// kNarrow.
template <class T, int kReduced, int kN, bool kAdds = false, bool kNarrow = false>
__device__ __forceinline__ void issue_columns_by_columns(float (&d)[kN / 2], uint32_t a,
                                                         uint32_t b) {
  using namespace cuda;
  const uint64_t left = mn_major_descriptor(a, kReduced);
  const uint64_t right =
      kNarrow ? narrow_descriptor(b, kReduced) : mn_major_descriptor(b, kReduced);
#pragma unroll
  for (int step = 0; step < kReduced / 16; ++step) {
    const uint32_t right_step = kNarrow ? narrow_step(step) : mn_major_step(step);
    Wgmma<T, kN>::template from_shared<Major::kOther, Major::kOther>(
        d, left + (mn_major_step(step) >> 4), right + (right_step >> 4), kAdds || step != 0);
  }
  wgmma_commit();
}

/// Zeroes rows [first, rows) of a tile of `panels` panels, which hold another sequence's data or
/// padding: 0 times a NaN would reach the sums. Every warpgroup that reads the tile does it.
template <int kPanels>
__device__ __forceinline__ void zero_rows(char* tile, int32_t first, int32_t rows,
                                          uint32_t barrier) {
  const int32_t chunks = (rows - first) * 8;
  for (int32_t i = static_cast<int32_t>(threadIdx.x % 128); i < chunks; i += 128) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      *reinterpret_cast<uint4*>(tile + p * cuda::panel_bytes(rows) + first * cuda::kPanelRowBytes +
                                i * 16) = make_uint4(0, 0, 0, 0);
    }
  }
  cuda::fence_async_shared();
  cuda::named_barrier_sync(barrier, 128, {"a consumer", "rows cleared"});
}

}  // namespace flashloom::sm90
