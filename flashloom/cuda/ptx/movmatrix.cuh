#pragma once

#include <cstdint>

namespace flashloom::cuda {

/// Transposes an 8 x 8 matrix of 16-bit elements that a warp holds as two a lane: lane l has row
/// l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

}  // namespace flashloom::cuda
