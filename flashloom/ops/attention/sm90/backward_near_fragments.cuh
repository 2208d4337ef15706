#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/fragment.cuh"

// dS of a tile of 64 keys x 64 queries in the backward kernels for few keys: dS comes from P
// as it was before it was rounded for dV. Of P rounded twice the largest errors were up to 1.6
// times the law's, where few pairs make them.

namespace flashloom::sm90 {

/// dS from P as it was before it was rounded. `kLate`: dV waits for dS, so that P need not be there
/// both rounded and not (registers), and what dV multiplies is rounded here.
template <class T, bool kLate>
__device__ __forceinline__ void near_slopes(const float (&scores)[32], const float (&dp)[32],
                                            uint32_t (&weights)[16], uint32_t (&ds)[16],
                                            const float* delta) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 shift = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = 4 * j + 2 * half;
      ds[at / 2] =
          cuda::pack2<T>(scores[at] * (dp[at] - shift.x), scores[at + 1] * (dp[at + 1] - shift.y));
      if constexpr (kLate) {
        weights[at / 2] = cuda::pack2<T>(scores[at], scores[at + 1]);
      }
    }
  }
}

}  // namespace flashloom::sm90
