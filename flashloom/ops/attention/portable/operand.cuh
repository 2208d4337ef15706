#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"

// Operands of mma.sync for one warp, one interface for 16-bit elements (m16n8k16) and f32 (m16n8k8
// in three tf32 products). A step of the reduced dimension is 32 bytes of a row either way.
//
// An accumulator c[n] holds a 16 x 8 tile: with g = lane / 4 and t = lane % 4, c[n][0] and c[n][1]
// are (g, 8 n + 2 t) and the next column, c[n][2] and c[n][3] the same of row g + 8.

namespace flashloom::portable {

/// Byte address of a 16-byte chunk of a row in a tile of shared memory. Chunks of eight
/// neighbouring rows are permuted so that ldmatrix meets no bank twice.
template <int kRowBytes>
__device__ __forceinline__ uint32_t chunk_address(uint32_t tile, uint32_t row, uint32_t chunk) {
  return tile + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

template <class T>
struct Operand {
  static constexpr int kStep = 16;         // reduced elements a step
  static constexpr int kTilesPerStep = 2;  // accumulator tiles that make one A
  static constexpr int kChain = 1;         // steps that multiply() takes at a time

  struct A {
    uint32_t words[4];
  };

  static __device__ __forceinline__ void finish(A&) {}

  /// A from two neighbouring accumulator tiles, rounded to T.
  static __device__ __forceinline__ A from(const float (&left)[4], const float (&right)[4]) {
    return {{cuda::pack2<T>(left[0], left[1]), cuda::pack2<T>(left[2], left[3]),
             cuda::pack2<T>(right[0], right[1]), cuda::pack2<T>(right[2], right[3])}};
  }

  /// B whose reduced dimension runs down the rows: rows [row, row + 16), columns [column,
  /// column + 16).
  template <int kRowBytes>
  static __device__ __forceinline__ void load_down(uint32_t (&words)[4], uint32_t tile,
                                                   uint32_t row, uint32_t column, uint32_t lane) {
    cuda::ldmatrix_x4_transposed(words,
                                 chunk_address<kRowBytes>(tile, row + (lane / 8 % 2) * 8 + lane % 8,
                                                          column / 8 + lane / 16));
  }

  template <int kSteps>
  static __device__ __forceinline__ void multiply(float (&left)[4], float (&right)[4],
                                                  const A (&a)[kSteps],
                                                  const uint32_t (&b)[kSteps][4]) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      cuda::mma_16x8x16<T>(left, a[k].words, b[k][0], b[k][1]);
      cuda::mma_16x8x16<T>(right, a[k].words, b[k][2], b[k][3]);
    }
  }
};

/// f32: every factor is split into a tf32 and a rest of 11 more bits; big x big + big x small +
/// small x big loses 2^-22 of a product, below the rounding of f32 sums.
template <>
struct Operand<float> {
  static constexpr int kStep = 8;
  static constexpr int kTilesPerStep = 1;
  static constexpr int kChain = 2;

  struct A {
    uint32_t words[4];
    uint32_t rest[4];
  };

  static __device__ __forceinline__ void split(uint32_t& word, uint32_t& rest) {
    const float value = __uint_as_float(word);
    uint32_t big;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(big) : "f"(value));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rest) : "f"(value - __uint_as_float(big)));
    word = big;
  }

  static __device__ __forceinline__ void finish(A& a) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      split(a.words[i], a.rest[i]);
    }
  }

  /// A from one accumulator tile. Columns 2 t and 2 t + 1 stand where columns t and t + 4 belong;
  /// load_down() permutes the rows of B alike.
  static __device__ __forceinline__ A from(const float (&tile)[4], const float (&)[4]) {
    A a = {{__float_as_uint(tile[0]), __float_as_uint(tile[2]), __float_as_uint(tile[1]),
            __float_as_uint(tile[3])},
           {}};
    finish(a);
    return a;
  }

  template <int kRowBytes>
  static __device__ __forceinline__ void load_down(uint32_t (&words)[4], uint32_t tile,
                                                   uint32_t row, uint32_t column, uint32_t lane) {
    // chunk_address() with what depends on the lane taken out, so that it is two registers and not
    // an address a load: rows lie 128 bytes or a multiple apart, tiles start at such a multiple.
    static_assert(kRowBytes % 128 == 0);
    const uint32_t r = 2 * (lane % 4);
    const uint32_t own = tile + r * kRowBytes + (((lane / 16) ^ r) << 4) + lane / 4 % 4 * 4;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t chunk = column / 4 + i / 2 * 2;
      const uint32_t address =
          (own ^ ((chunk % 8 ^ i % 2) << 4)) + chunk / 8 * 128 + (row + i % 2) * kRowBytes;
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(words[i]) : "r"(address) : "memory");
    }
  }

  static __device__ __forceinline__ void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }

  // The tensor cores cut sums off instead of rounding them; in sums of their own, added by the
  // ordinary adders, that does not build up along a row. Several steps share one, the small
  // products of all before the big ones.
  template <int kSteps>
  static __device__ __forceinline__ void multiply(float (&left)[4], float (&right)[4],
                                                  const A (&a)[kSteps],
                                                  const uint32_t (&b)[kSteps][4]) {
    uint32_t big[kSteps][4], rest[kSteps][4];
    float first[4] = {};
    float second[4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        big[k][i] = b[k][i];
        split(big[k][i], rest[k][i]);
      }
      product(first, a[k].rest, big[k][0], big[k][1]);
      product(second, a[k].rest, big[k][2], big[k][3]);
      product(first, a[k].words, rest[k][0], rest[k][1]);
      product(second, a[k].words, rest[k][2], rest[k][3]);
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      product(first, a[k].words, big[k][0], big[k][1]);
      product(second, a[k].words, big[k][2], big[k][3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] += first[i];
      right[i] += second[i];
    }
  }
};

/// c = a b^T: 16 rows of the tile `a` from `row` on against the first 8 kTiles rows of the tile
/// `b`, both of `width` elements a row (zeros behind them).
template <class T, int kDim, int kTiles>
__device__ __forceinline__ void multiply_along(float (&c)[kTiles][4], uint32_t a, uint32_t row,
                                               uint32_t b, int32_t width, uint32_t lane) {
  constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  constexpr int kSteps = kRowBytes / 32;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
  }
  constexpr int kChain = Operand<T>::kChain;
  // Two pairs of steps of f32 at a time were 1 % slower than one.
  constexpr int kUnroll = sizeof(T) == 4 ? 1 : 4;
#pragma unroll kUnroll
  for (int step = 0; step < kSteps; step += kChain) {
    // Rows of 192 elements in tiles of 256.
    if (kDim > 128 && step * Operand<T>::kStep >= width) {
      break;
    }
    typename Operand<T>::A left[kChain];
#pragma unroll
    for (int k = 0; k < kChain; ++k) {
      cuda::ldmatrix_x4(left[k].words,
                        chunk_address<kRowBytes>(a, row + lane % 16, 2 * (step + k) + lane / 16));
      Operand<T>::finish(left[k]);
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t right[kChain][4];
#pragma unroll
      for (int k = 0; k < kChain; ++k) {
        cuda::ldmatrix_x4(right[k], chunk_address<kRowBytes>(b, 8 * n + (lane / 16) * 8 + lane % 8,
                                                             2 * (step + k) + lane / 8 % 2));
      }
      Operand<T>::multiply(c[n], c[n + 1], left, right);
    }
  }
}

/// sums += p b: p 16 x (8 kTiles) in accumulators, the tile `b` of as many rows and `width`
/// columns.
template <class T, int kDim, int kTiles>
__device__ __forceinline__ void multiply_down(float (&sums)[kDim / 8][4],
                                              const float (&p)[kTiles][4], uint32_t b,
                                              int32_t width, uint32_t lane) {
  constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  constexpr int kPerStep = Operand<T>::kTilesPerStep;
  constexpr int kChain = Operand<T>::kChain;
#pragma unroll
  for (int k = 0; k < kTiles; k += kChain * kPerStep) {
    typename Operand<T>::A left[kChain];
#pragma unroll
    for (int c = 0; c < kChain; ++c) {
      left[c] = Operand<T>::from(p[k + c * kPerStep], p[k + c * kPerStep + kPerStep - 1]);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      if (kDim > 128 && 8 * n >= width) {
        break;
      }
      uint32_t right[kChain][4];
#pragma unroll
      for (int c = 0; c < kChain; ++c) {
        Operand<T>::template load_down<kRowBytes>(right[c], b, 8 * (k + c * kPerStep), 8 * n, lane);
      }
      Operand<T>::multiply(sums[n], sums[n + 1], left, right);
    }
  }
}

}  // namespace flashloom::portable
