#pragma once

#include "flashloom/cuda/ptx/tma.cuh"

namespace flashloom::cuda {

/// tma_store_4d() with a hint for the L2 cache.
__device__ __forceinline__ void tma_store_4d_hinted(const CUtensorMap* map, uint32_t shared,
                                                    int32_t c0, int32_t c1, int32_t c2, int32_t c3,
                                                    uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group.L2::cache_hint "
      "[%0, {%2, %3, %4, %5}], [%1], %6;" ::"l"(reinterpret_cast<uint64_t>(map)),
      "r"(shared), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(hint)
      : "memory");
}

}  // namespace flashloom::cuda
