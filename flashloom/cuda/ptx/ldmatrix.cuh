#pragma once

#include <cstdint>

namespace flashloom::cuda {

/// Loads four 8 x 8 matrices of 16-bit elements from shared memory; lane l gives the address of row
/// l % 8 of matrix l / 8 (16 bytes). Lane l receives of each matrix elements 2 (l % 4) and the next
/// one of row l / 4.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

/// The same with every matrix transposed: lane l receives elements l / 4 of rows 2 (l % 4) and the
/// next one.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

}  // namespace flashloom::cuda
