#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/forward_shape.cuh"

// A thread's scores of one tile of keys: which of them count, and which is the greatest. It holds
// rows r and r + 8 of its warp's 16 and, of each eight keys, two neighbours: element 4 j + 2 half +
// c is the c-th of them among the j-th eight keys, of row r + 8 half.

namespace flashloom::sm90 {

/// A bit for each of a row's scores in this thread: whether its key comes before the key `end`,
/// counted from the thread's first.
__device__ __forceinline__ uint32_t keys_before(int32_t end) {
  // Of each eight keys the thread has the first two.
  const int32_t keys = max(end, 0);
  uint32_t behind;  // a shift of 32 and more leaves nothing
  asm("shl.b32 %0, %1, %2;"
      : "=r"(behind)
      : "r"(0xffffffffu), "r"(keys / 8 * 2 + min(keys % 8, 2)));
  return ~behind;
}

/// Hides pairs that the rows do not see among a thread's scores of a tile of keys. `row` is this
/// thread's first query, `key` the tile's first key; `left` says whether keys may be hidden on the
/// left.
template <int kScores>
__device__ __forceinline__ void mask_scores(float (&scores)[kScores], const Sequence& sequence,
                                            int32_t row, int32_t key, uint32_t lane, bool left) {
  const int32_t first = key + 2 * static_cast<int32_t>(lane % 4);
  uint32_t seen[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    seen[half] = keys_before(sequence.key_end(row + 8 * half) - first);
    if (left) {
      seen[half] &= ~keys_before(sequence.key_begin(row + 8 * half) - first);
    }
  }
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const uint32_t bit = 1u << (i / 4 * 2 + i % 2);
    scores[i] = (seen[i / 2 % 2] & bit) != 0 ? scores[i] : -INFINITY;
  }
}

template <int kScores>
__device__ __forceinline__ void hide_scores(float (&scores)[kScores]) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    scores[i] = -INFINITY;
  }
}

/// The bits of the greatest score of each row's part, as far as it is not negative: there, floats
/// are ordered as integers are, and three are compared at a time.
template <int kScores>
__device__ __forceinline__ void find_highest(const float (&scores)[kScores],
                                             int32_t (&highest)[2]) {
  highest[0] = __float_as_int(scores[0]);
  highest[1] = __float_as_int(scores[2]);
#pragma unroll
  for (int j = 0; j < kScores / 4; ++j) {
    highest[0] =
        __vimax3_s32(highest[0], __float_as_int(scores[4 * j]), __float_as_int(scores[4 * j + 1]));
    highest[1] = __vimax3_s32(highest[1], __float_as_int(scores[4 * j + 2]),
                              __float_as_int(scores[4 * j + 3]));
  }
}

/// The same where all are negative: the least bits, without sign, are those of the greatest.
template <int kScores>
__device__ __forceinline__ void find_lowest(const float (&scores)[kScores], uint32_t (&lowest)[2]) {
  lowest[0] = __float_as_uint(scores[0]);
  lowest[1] = __float_as_uint(scores[2]);
#pragma unroll
  for (int j = 0; j < kScores / 4; ++j) {
    lowest[0] =
        __vimin3_u32(lowest[0], __float_as_uint(scores[4 * j]), __float_as_uint(scores[4 * j + 1]));
    lowest[1] = __vimin3_u32(lowest[1], __float_as_uint(scores[4 * j + 2]),
                             __float_as_uint(scores[4 * j + 3]));
  }
}

/// The greatest score of each row, which four lanes share; `highest` is what find_highest() found.
template <int kScores>
__device__ __forceinline__ void find_row_maximum(const float (&scores)[kScores],
                                                 int32_t (&highest)[2], float (&row)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    highest[half] = max(highest[half], __shfl_xor_sync(0xffffffffu, highest[half], 1));
    highest[half] = max(highest[half], __shfl_xor_sync(0xffffffffu, highest[half], 2));
    row[half] = __int_as_float(highest[half]);
  }
  if (__any_sync(0xffffffffu, highest[0] < 0 || highest[1] < 0) != 0) {
    uint32_t lowest[2];
    find_lowest(scores, lowest);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      lowest[half] = min(lowest[half], __shfl_xor_sync(0xffffffffu, lowest[half], 1));
      lowest[half] = min(lowest[half], __shfl_xor_sync(0xffffffffu, lowest[half], 2));
      row[half] = highest[half] < 0 ? __uint_as_float(lowest[half]) : row[half];
    }
  }
}

}  // namespace flashloom::sm90
