#pragma once

#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/ops/attention/sm90/forward_band_shape.cuh"
#include "flashloom/ops/attention/sm90/forward_rows.cuh"
#include "flashloom/ops/attention/sm90/forward_scores.cuh"

// The arithmetic of a consumer warp of the forward kernel for narrow bands. It multiplies its 16
// rows by itself (mma.sync): of the 192 keys of three tiles these see 144 at most, which lie at
// other places for each of the four warps of a tile. A product of all four (wgmma) has all 192, and
// what a warp may skip of them needs code of its own.

namespace flashloom::sm90 {

/// 16 rows of a tile of queries and the keys that they may see.
template <class Shape>
struct ForwardBandRows {
  using T = typename Shape::T;
  static constexpr int kSteps = Shape::kDim / 16;  // of 16 columns
  static constexpr int kGroup = 16;                // keys
  // A warp's rows are 16 of the tile's: since the first tile of keys is the first that row 0 sees
  // something of and the last one the last of row 63, row 16 w + r sees keys from 16 w + r to
  // 16 w + r + 128 at most, so the warp nine of the twelve groups of keys, from the w-th on.
  static constexpr int kVisible = (kBandReach - 1) * Shape::kTile / kGroup + 1;
  static constexpr int kScores = kVisible * kGroup / 2;

  uint32_t lane;
  int32_t warp_row;  // the first of a tile of queries that is this warp's

  /// This warp's 16 rows of a tile of queries, as the first operand of a product.
  __device__ __forceinline__ void load_queries(uint32_t (&q)[4 * kSteps], const char* tile) const {
    const uint32_t row = static_cast<uint32_t>(warp_row) + lane % 16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t words[4];
      cuda::ldmatrix_x4(words,
                        cuda::shared_address(tile) +
                            cuda::swizzled_offset(row, 16 * step + 8 * (lane / 16), Shape::kTile));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[4 * step + i] = words[i];
      }
    }
  }

  /// Where the warp's group `number` of keys lies in the three tiles.
  __device__ __forceinline__ uint32_t group_address(const uint32_t (&tiles)[kBandReach],
                                                    int number) const {
    const auto group = static_cast<uint32_t>(number) + static_cast<uint32_t>(warp_row) / kGroup;
    constexpr uint32_t kGroups = Shape::kTile / kGroup;  // of a tile
    const uint32_t tile = group < kGroups ? tiles[0] : group < 2 * kGroups ? tiles[1] : tiles[2];
    return tile + group % kGroups * kGroup * cuda::kPanelRowBytes;
  }

  /// Where chunk `chunk` of eight columns behind each 16 columns of row `row` of a group lies.
  __device__ __forceinline__ void find_offsets(uint32_t (&offsets)[kSteps], uint32_t row,
                                               uint32_t chunk) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const auto first = static_cast<uint32_t>(2 * step % 8);
      offsets[step] = static_cast<uint32_t>(step / 4) * cuda::panel_bytes(Shape::kTile) +
                      row * cuda::kPanelRowBytes + ((first + chunk) ^ lane % 8) * 16;
      // Kept as they are: a load adds the group's place, which is the same for all lanes, for
      // nothing; the compiler would compute 72 places instead.
      asm("" : "+r"(offsets[step]));
    }
  }

  /// c (16 x 8, an accumulator's part) += a b.
  static __device__ __forceinline__ void multiply(float* c, const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    float sums[4] = {c[0], c[1], c[2], c[3]};
    cuda::mma_16x8x16<T>(sums, a, b0, b1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      c[i] = sums[i];
    }
  }

  /// The products of queries and keys that the warp may see.
  __device__ __forceinline__ void find_scores(float (&scores)[kScores],
                                              const uint32_t (&q)[4 * kSteps],
                                              const uint32_t (&keys)[kBandReach]) const {
    // ldmatrix: matrices are keys 0-7 and 8-15 by columns 0-7 and 8-15 of a step.
    uint32_t offsets[kSteps];
    find_offsets(offsets, lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int group = 0; group < kVisible; ++group) {
      const uint32_t place = group_address(keys, group);
      float* sums = &scores[group * kGroup / 2];
#pragma unroll
      for (int i = 0; i < kGroup / 2; ++i) {
        sums[i] = 0;
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t words[4];
        cuda::ldmatrix_x4(words, place + offsets[step]);
        const uint32_t a[4] = {q[4 * step], q[4 * step + 1], q[4 * step + 2], q[4 * step + 3]};
        multiply(sums, a, words[0], words[1]);
        multiply(sums + 4, a, words[2], words[3]);
      }
    }
  }

  /// out += weights of group `group` of keys times their values, which lie as far behind the keys
  /// as those of other tiles.
  __device__ __forceinline__ void add_values(float (&out)[Shape::kDim / 2],
                                             const uint32_t (&weights)[4], int group,
                                             const uint32_t (&offsets)[kSteps],
                                             const uint32_t (&keys)[kBandReach]) const {
    const uint32_t place = group_address(keys, group) + Shape::kStages * Shape::kTileBytes;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t words[4];
      cuda::ldmatrix_x4_transposed(words, place + offsets[step]);
      multiply(&out[8 * step], weights, words[0], words[1]);
      multiply(&out[8 * step + 4], weights, words[2], words[3]);
    }
  }

  /// Hides what the rows `row` and `row` + 8 do not see of kCount scores from kFirst on; `key` is
  /// the first of the 64 keys that these lie among.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void mask(float (&scores)[kScores], const Sequence& sequence,
                                       int32_t row, int32_t key) const {
    const int32_t first = key + 2 * static_cast<int32_t>(lane % 4);
    uint32_t visible[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      visible[half] = keys_before(sequence.key_end(row + 8 * half) - first) &
                      ~keys_before(sequence.key_begin(row + 8 * half) - first);
    }
#pragma unroll
    for (int i = kFirst; i < kFirst + kCount; ++i) {
      const uint32_t bit = 1u << (i % 32 / 4 * 2 + i % 2);
      scores[i] = (visible[i / 2 % 2] & bit) != 0 ? scores[i] : -INFINITY;
    }
  }

  /// Hides what the warp's rows, from `row` on, do not see; `key` is its first key.
  __device__ __forceinline__ void hide(float (&scores)[kScores], const Sequence& sequence,
                                       int32_t row, int32_t key) const {
    const int32_t own = row + static_cast<int32_t>(lane / 4);
    const int32_t last = key + (kVisible - 1) * kGroup;  // of the last group
    if (sequence.key_begin(row + 15) > key + kGroup || sequence.key_end(row) < last) {
      mask<0, 32>(scores, sequence, own, key);
      mask<32, 32>(scores, sequence, own, key + Shape::kTile);
      mask<64, kScores - 64>(scores, sequence, own, key + 2 * Shape::kTile);
      return;
    }
    // In the middle of a wide band only the first group has keys before it, the last behind it.
    constexpr int kCount = kGroup / 2;
    const auto shift = 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t begin = sequence.key_begin(own + 8 * half) - key - shift;
      const int32_t end = sequence.key_end(own + 8 * half) - last - shift;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i / 2 % 2 == half) {
          const int column = i / 4 * 8 + i % 2;
          float& behind = scores[kScores - kCount + i];
          scores[i] = column >= begin ? scores[i] : -INFINITY;
          behind = column < end ? behind : -INFINITY;
        }
      }
    }
  }

  /// The greatest score of the rows r and r + 8 that the thread holds a part of.
  static __device__ __forceinline__ void find_maximum(const float (&scores)[kScores],
                                                      float (&maximum)[2]) {
    int32_t highest[2];
    find_highest(scores, highest);
    find_row_maximum(scores, highest, maximum);
  }

  /// Scores become exponentials, relative to `shift`, which are summed and weigh the values.
  __device__ __forceinline__ void add_weighted(const float (&scores)[kScores],
                                               const uint32_t (&keys)[kBandReach], float scale,
                                               float (&shift)[2], float (&sum)[2],
                                               float (&out)[Shape::kDim / 2]) const {
    // Transposed: matrices are keys 0-7 and 8-15 by columns 0-7, then by columns 8-15.
    uint32_t offsets[kSteps];
    find_offsets(offsets, lane / 8 % 2 * 8 + lane % 8, lane / 16);
#pragma unroll
    for (int group = 0; group < kVisible; ++group) {
      uint32_t weights[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* score = &scores[group * kGroup / 2 + 2 * i];
        const float even = cuda::exp2_fast(fmaf(score[0], scale, -shift[i % 2]));
        const float odd = cuda::exp2_fast(fmaf(score[1], scale, -shift[i % 2]));
        weights[i] = cuda::pack2<T>(even, odd);
        sum[i % 2] += even + odd;
      }
      add_values(out, weights, group, offsets, keys);
      if (group % 3 == 2) {
        // Zero, but ptxas cannot know: else it scales all scores first, and spills.
        shift[0] = fmaf(sum[0], 0.0f, shift[0]);
        shift[1] = fmaf(sum[1], 0.0f, shift[1]);
      }
    }
  }
};

}  // namespace flashloom::sm90
