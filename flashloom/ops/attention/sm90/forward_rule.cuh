#pragma once

#include <type_traits>

#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/attention_dropout.h"
#include "flashloom/ops/attention/sm90/forward_shape.cuh"

// What general kernels do between the products: softcap and ALiBi on scores, bits of partial
// blocks, dropout on probabilities. A thread holds rows r and r + 8 of its warp's 16 and, of each 8
// keys, those at 2 * (lane % 4) and behind it: element 4 * j + 2 * half + c is key 8 j + c of row
// r + 8 half.

namespace flashloom::sm90 {

inline constexpr float kLog2E = 1.4426950408889634f;

/// tanh within 2e-7: what counts is the absolute error of a score.
__device__ __forceinline__ float tanh_accurate(float x) {
  const float e = cuda::exp2_fast(x * (2 * kLog2E));
  return 1 - __fdividef(2, 1 + e);
}

template <class Shape>
struct ForwardScorer {
  /// Raw products to scores in base 2. `distance` is that of the thread's first key from its first
  /// query.
  static __device__ __forceinline__ void adjust(const ForwardParams& params, float slope,
                                                float (&scores)[Shape::kKeys / 2],
                                                int32_t distance) {
    if (params.rule.softcap > 0) {
      const float inner = params.scale / params.rule.softcap;
      const float outer = params.rule.softcap * kLog2E;
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 2; ++i) {
        scores[i] = outer * tanh_accurate(scores[i] * inner);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 2; ++i) {
        scores[i] *= params.scale * kLog2E;
      }
    }
    if (params.rule.slopes != nullptr) {
      // Distances are exact floats below 2^24.
      const auto first = static_cast<float>(distance);
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 2; ++i) {
        const auto step = static_cast<float>(8 * (i / 4) + i % 2 - 8 * (i / 2 % 2));
        scores[i] = fmaf(-slope, fabsf(first + step), scores[i]);
      }
    }
  }

  /// Hides pairs of the same position.
  static __device__ __forceinline__ void exclude_self(float (&scores)[Shape::kKeys / 2],
                                                      int32_t distance) {
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 2; ++i) {
      const int32_t step = 8 * (i / 4) + i % 2 - 8 * (i / 2 % 2);
      scores[i] = distance + step != 0 ? scores[i] : -INFINITY;
    }
  }

  /// The bits of one row of a partial block's tile.
  struct Bits {
    static constexpr int kWords = Shape::kKeys / 32;
    uint32_t words[2][kWords];
  };

  /// Loads the bits of rows `row` and `row` + 8 (of the sequence); before they are needed, for they
  /// come from memory.
  static __device__ __forceinline__ void load_bits(const ForwardParams& params, int32_t partial,
                                                   int32_t row, int32_t key, Bits& bits) {
    const ForwardBlocks& blocks = params.rule.blocks;
    const int32_t bytes = blocks.block_keys / 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t line =
          int64_t{partial} * blocks.block_rows + (row + 8 * half) % blocks.block_rows;
      const auto* source = reinterpret_cast<const uint32_t*>(blocks.bits + line * bytes +
                                                             key % blocks.block_keys / 8);
#pragma unroll
      for (int i = 0; i < Bits::kWords; ++i) {
        bits.words[half][i] = source[i];
      }
    }
  }

  static __device__ __forceinline__ void apply_bits(const Bits& bits, uint32_t lane,
                                                    float (&scores)[Shape::kKeys / 2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int word = 0; word < Bits::kWords; ++word) {
        const uint32_t own = bits.words[half][word] >> (2 * (lane % 4));
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& score = scores[4 * (4 * word + i / 2) + 2 * half + i % 2];
          score = (own & (1u << (8 * (i / 2) + i % 2))) != 0 ? score : -INFINITY;
        }
      }
    }
  }

  /// Clears the probabilities of dropped pairs; `query` and `key` are the positions of the thread's
  /// first row and of the tile's first key.
  static __device__ __forceinline__ void drop(const ForwardParams& params, const ForwardTile& tile,
                                              uint32_t query, uint32_t key, uint32_t lane,
                                              float (&weights)[Shape::kKeys / 2]) {
    const uint32_t below = params.rule.drop_below;
    const uint64_t seed = *params.rule.seed;
    const uint64_t offset = params.rule.offset == nullptr ? 0 : *params.rule.offset;
    const auto sequence = static_cast<uint32_t>(tile.batch);
    const auto head = static_cast<uint32_t>(tile.head);
    const bool odd = (lane & 1) != 0;
    using Kept = std::conditional_t<(Shape::kKeys > 64), uint64_t, uint32_t>;
    Kept kept = 0;  // 4 bits for each 8 keys, in the order of the elements
    const uint32_t first = key + 2 * (lane % 4);
    const auto kept_of = [&](uint32_t row, uint32_t block) {
      const auto bits = attention_dropout_block(seed, offset, sequence, head, row, block);
      return (bits[0] >= below ? 1u : 0) | (bits[1] >= below ? 2u : 0) |
             (bits[2] >= below ? 4u : 0) | (bits[3] >= below ? 8u : 0);
    };
#pragma unroll 1
    for (int j = 0; j < Shape::kKeys / 8; ++j) {
      const uint32_t column = first + 8 * j;
      uint32_t four = 0;
      if (key % 4 == 0) {
        // Two lanes share a block of four keys; each draws that of one row.
        const uint32_t own = kept_of(query + (odd ? 8 : 0), column >> 2);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, own, 1);
        const uint32_t upper = odd ? other : own;
        const uint32_t lower = odd ? own : other;
        const uint32_t shift = odd ? 2 : 0;
        four = (upper >> shift & 3) | (lower >> shift & 3) << 2;
      } else {
#pragma unroll 1
        for (uint32_t i = 0; i < 4; ++i) {
          const uint32_t position = column + i % 2;
          four |= (kept_of(query + 8 * (i / 2), position >> 2) >> position % 4 & 1) << i;
        }
      }
      kept |= static_cast<Kept>(four) << (4 * j);
    }
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 2; ++i) {
      weights[i] = (kept >> i & 1) != 0 ? weights[i] : 0;
    }
  }
};

}  // namespace flashloom::sm90
