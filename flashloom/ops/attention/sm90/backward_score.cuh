#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/attention_dropout.h"
#include "flashloom/ops/attention/patterns/sequence_geometry.h"
#include "flashloom/ops/attention/sm90/schedule.cuh"

// What general scores add to the backward kernel, for a thread's fragment of a transposed tile of
// 64 keys x 64 queries: element 4 j + 2 half + c is key lane / 4 + 8 half of the warp's 16, query
// 8 j + 2 (lane % 4) + c.

namespace flashloom::sm90 {

inline constexpr float kLog2e = 1.4426950408889634f;

struct BackwardScore {
  float softcap;        // 0: off
  const float* slopes;  // ALiBi, or null
  int64_t slope_batch, slope_head;
  const uint64_t* seed;  // of dropout, or null
  const uint64_t* offset;
  uint32_t threshold;  // bits below it are dropped
  float keep;          // 1 / (1 - probability)
  bool exclude_self;
};

/// The transposed lists of a block mask; offsets.data is null without one.
struct BackwardBlocks {
  GeometryTable offsets, rows, partial;
  const uint8_t* bits;
  int32_t queries, keys;  // of a block
  int32_t query_tiles;    // tiles of queries a block
  int32_t row_count, entry_count, partial_count;
  // How many blocks of a row come before an entry, by list and entry; null: dQ in any order.
  int32_t* ranks;
  int32_t rank_batch, rank_head;  // lists a sequence and a head; 0 where shared
};

/// Softcap and ALiBi: raw products become scores in powers of two. `slopes` takes d(score) /
/// d(scaled product), packed f16; `distance` is the thread's first key's position less its first
/// query's.
template <int kScores>
__device__ __forceinline__ void general_scores(float (&scores)[kScores],
                                               uint32_t (&slopes)[kScores / 2],
                                               const BackwardScore& score, float scale, float alibi,
                                               int32_t distance) {
  const float cap = score.softcap;
  const float inner = cap != 0 ? 2 * kLog2e * scale / cap : 0;
#pragma unroll
  for (int i = 0; i < kScores; i += 2) {
    float slope[2] = {1, 1};
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float& s = scores[i + c];
      if (cap != 0) {
        // tanh x = 1 - 2 / (exp(2 x) + 1); tanh.approx is 2^-11 off, which cap would multiply.
        const float t = 1 - __fdividef(2.0f, cuda::exp2_fast(s * inner) + 1);
        slope[c] = fmaf(-t, t, 1);
        s = t * (cap * kLog2e);
      } else {
        s *= scale * kLog2e;
      }
      const int32_t apart = distance + 8 * (i / 2 % 2) - 8 * (i / 4) - c;
      s = fmaf(-alibi, static_cast<float>(abs(apart)), s);
    }
    slopes[i / 2] = cuda::pack2<__half>(slope[0], slope[1]);
  }
}

/// Hides each query's key at its own position; `distance` as above.
template <int kScores>
__device__ __forceinline__ void hide_self(float (&scores)[kScores], int32_t distance) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    scores[i] = distance + 8 * (i / 2 % 2) - 8 * (i / 4) == i % 2 ? -INFINITY : scores[i];
  }
}

/// Bit i is set if a partial block keeps element i. `query` and `key` are the first of the
/// thread's, within the block; keys of the warp start at a multiple of 16.
__device__ __forceinline__ uint32_t kept_by_block(const BackwardBlocks& blocks, int32_t partial,
                                                  int32_t query, int32_t key) {
  const int32_t bytes = blocks.keys / 8;
  const uint8_t* row =
      blocks.bits + (int64_t{partial} * blocks.queries + query) * bytes + key / 16 * 2;
  uint32_t kept = 0;
#pragma unroll 1
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const uint8_t* place = row + (8 * j + c) * bytes;
      kept |= (place[0] >> (key % 8) & 1u) << (4 * j + c);
      kept |= (place[1] >> (key % 8) & 1u) << (4 * j + 2 + c);
    }
  }
  return kept;
}

/// Bit i is set if dropout keeps element i of a tile of queries x keys (64 keys). Positions are
/// those of the thread's first query and key.
__device__ __forceinline__ uint32_t kept_by_dropout_of_rows(const BackwardScore& score,
                                                            uint32_t sequence, uint32_t head,
                                                            uint32_t query, uint32_t key,
                                                            uint32_t key_start) {
  const uint64_t seed = *score.seed;
  const uint64_t offset = score.offset != nullptr ? *score.offset : 0;
  const uint32_t odd = threadIdx.x % 2;
  auto draw = [&](uint32_t row, uint32_t block) {
    const std::array<uint32_t, 4> words =
        attention_dropout_block(seed, offset, sequence, head, row, block);
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      bits |= (words[k] >= score.threshold ? 1u : 0u) << k;
    }
    return bits;
  };
  uint32_t kept = 0;
#pragma unroll 1
  for (uint32_t j = 0; j < 8; ++j) {
    const uint32_t own = key + 8 * j;
    if (key_start % 4 == 0) {
      // Two lanes share a draw of four keys: each draws for one row.
      const uint32_t mine = draw(query + 8 * odd, own / 4);
      const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
      const uint32_t upper = (odd != 0 ? other : mine) >> (2 * odd) & 3;
      const uint32_t lower = (odd != 0 ? mine : other) >> (2 * odd) & 3;
      kept |= (upper | lower << 2) << (4 * j);
      continue;
    }
#pragma unroll 1
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t at = own + i % 2;
      kept |= (draw(query + 8 * (i / 2), at / 4) >> at % 4 & 1) << (4 * j + i);
    }
  }
  return kept;
}

/// The same of a tile of keys x queries.
template <int kScores>
__device__ __forceinline__ uint32_t kept_by_dropout(const BackwardScore& score, uint32_t sequence,
                                                    uint32_t head, uint32_t query, uint32_t key,
                                                    uint32_t key_start) {
  static_assert(kScores == 32);
  const uint64_t seed = *score.seed;
  const uint64_t offset = score.offset != nullptr ? *score.offset : 0;
  const uint32_t lane = threadIdx.x % 32;
  uint32_t kept = 0;
  if (key_start % 4 != 0) {
#pragma unroll 1
    for (uint32_t i = 0; i < 32; ++i) {
      const uint32_t own = key + i / 2 % 2 * 8;
      const std::array<uint32_t, 4> words =
          attention_dropout_block(seed, offset, sequence, head, query + i / 4 * 8 + i % 2, own / 4);
      const uint32_t even = (own & 2) != 0 ? words[2] : words[0];
      const uint32_t odd = (own & 2) != 0 ? words[3] : words[1];
      const uint32_t bits = (own & 1) != 0 ? odd : even;
      kept |= (bits >= score.threshold ? 1u : 0u) << i;
    }
    return kept;
  }
  // Four lanes hold the four keys of a draw: each draws for a quarter of the queries.
  const uint32_t own = lane / 4 % 4;
  uint32_t drawn = 0;  // bit 4 m + k: key k of draw m
#pragma unroll 1
  for (uint32_t m = 0; m < 8; ++m) {
    const uint32_t j = m / 4 * 4 + own;
    const std::array<uint32_t, 4> words = attention_dropout_block(
        seed, offset, sequence, head, query + 8 * j + m % 2, (key + m / 2 % 2 * 8) / 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      drawn |= (words[k] >= score.threshold ? 1u : 0u) << (4 * m + k);
    }
  }
#pragma unroll
  for (uint32_t from = 0; from < 4; ++from) {
    const uint32_t other = __shfl_sync(0xffffffffu, drawn, (lane & ~12u) | from << 2);
    const uint32_t spread = other >> own & 0x11111111u;
    // Bits 0, 4, 8, 12 to 0 … 3, and the upper half likewise.
    const uint32_t joined = spread | spread >> 3 | spread >> 6 | spread >> 9;
    kept |= (joined & 15u) << (4 * from) | (joined >> 16 & 15u) << (16 + 4 * from);
  }
  return kept;
}

}  // namespace flashloom::sm90
