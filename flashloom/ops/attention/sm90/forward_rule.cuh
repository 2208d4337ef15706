#pragma once

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

/// tanh(x) = x (1 + c1 x^2 + ... + c5 x^10) within 1.3e-8 for |x| up to kCurveReach (least squares,
/// weights towards the largest error).
inline constexpr float kCurveReach = 0.75f;
inline constexpr float kCurve[5] = {-0.333329093f, 0.133242487f, -0.053282309f, 0.0194553415f,
                                    -0.00462611661f};

template <class Shape>
struct ForwardScorer {
  static constexpr int kScores = Shape::kKeys / 2;

  /// Raw products to scores in base 2, slopes left out.
  static __device__ __forceinline__ void adjust(const ForwardParams& params,
                                                float (&scores)[kScores]) {
    const ForwardRule& rule = params.rule;
    if (rule.softcap <= 0) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        scores[i] *= params.scale * kLog2E;
      }
      return;
    }
    // tanh costs two of the few special functions; away from the cap a polynomial will do.
    float furthest = 0;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      furthest = fmaxf(furthest, fabsf(scores[i]));
    }
    if (__any_sync(0xffffffffu, furthest > rule.curve_reach) == 0) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        const float square = scores[i] * scores[i];
        float curve = fmaf(rule.curve[5], square, rule.curve[4]);
        curve = fmaf(curve, square, rule.curve[3]);
        curve = fmaf(curve, square, rule.curve[2]);
        curve = fmaf(curve, square, rule.curve[1]);
        curve = fmaf(curve, square, rule.curve[0]);
        scores[i] *= curve;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      scores[i] = rule.cap_outer * tanh_accurate(scores[i] * rule.cap_inner);
    }
  }

  /// Adds ALiBi's -slope |distance|; `slope` in the scores' units, `distance` that of the thread's
  /// first key from its first query.
  static __device__ __forceinline__ void add_slope(float slope, float (&scores)[kScores],
                                                   int32_t distance) {
    // Distances are exact floats below 2^24.
    const auto first = static_cast<float>(distance);
    const bool before = __all_sync(0xffffffffu, distance + Shape::kKeys <= 0) != 0;
    const bool behind = __all_sync(0xffffffffu, distance >= 8) != 0;
    if (before || behind) {
      // On one side of the queries: distances of row + 8 are those of the row 8 keys earlier.
      const float slant = before ? slope : -slope;
      float lower[2] = {first - 8, first - 7};
#pragma unroll
      for (int j = 0; j < Shape::kKeys / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float upper = first + static_cast<float>(8 * j + c);
          scores[4 * j + c] = fmaf(slant, upper, scores[4 * j + c]);
          scores[4 * j + 2 + c] = fmaf(slant, lower[c], scores[4 * j + 2 + c]);
          lower[c] = upper;
        }
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const auto step = static_cast<float>(8 * (i / 4) + i % 2 - 8 * (i / 2 % 2));
      scores[i] = fmaf(-slope, fabsf(first + step), scores[i]);
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

  /// Loads the bits of rows `row` and `row` + 8 of the tile of queries, those of its row 0 start at
  /// word `first`; before they are needed, for they come from memory.
  static __device__ __forceinline__ void load_bits(const ForwardParams& params, int32_t first,
                                                   int32_t row, Bits& bits) {
    const ForwardBlocks& blocks = params.rule.blocks;
    const int32_t line = blocks.line_words;
    const auto* source =
        reinterpret_cast<const uint32_t*>(blocks.bits) + first + int64_t{row} * line;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < Bits::kWords; ++i) {
        bits.words[half][i] = source[8 * half * line + i];
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

  /// One bit a score, in their order: whether the pair is kept.
  struct Kept {
    uint32_t words[(kScores + 31) / 32];
  };

  /// Draws for the tile whose thread's first row is `query` and whose first key is `key` (positions
  /// of dropout). Needs no scores, so it runs while they are computed.
  static __device__ __forceinline__ void draw(const ForwardParams& params, const ForwardTile& tile,
                                              uint32_t query, uint32_t key, uint32_t lane,
                                              Kept& kept) {
    uint64_t seed = *params.rule.seed;
    const uint64_t offset = params.rule.offset == nullptr ? 0 : *params.rule.offset;
    // The round keys would otherwise be computed once and held in 20 registers.
    asm volatile("" : "+l"(seed));
    const uint32_t below = params.rule.drop_below;
    const auto sequence = static_cast<uint32_t>(tile.batch);
    const auto head = static_cast<uint32_t>(tile.head);
    const uint32_t first = key + 2 * (lane % 4);
    const auto kept_of = [&](uint32_t row, uint32_t block) {
      const auto bits = attention_dropout_block(seed, offset, sequence, head, row, block);
      return (bits[0] >= below ? 1u : 0) | (bits[1] >= below ? 2u : 0) |
             (bits[2] >= below ? 4u : 0) | (bits[3] >= below ? 8u : 0);
    };
    constexpr int kGroup = Shape::kDim > 128 ? 1 : 4;  // blocks drawn side by side
    const bool odd = (lane & 1) != 0;
    if (key % 4 == 0) {
      // Two lanes share a block of four keys; each draws that of one row: 4 bits for 8 keys.
      const uint32_t row = query + (odd ? 8 : 0);
#pragma unroll
      for (uint32_t& word : kept.words) {
        word = 0;
      }
#pragma unroll 1
      for (int j = 0; j < Shape::kKeys / 8; j += kGroup) {
        uint32_t own = 0;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          own |= kept_of(row, (first + 8 * (j + i)) >> 2) << (4 * i);
        }
        if constexpr (Shape::kKeys > 64) {
          kept.words[0] |= j < 8 ? own << (4 * j) : 0;
          kept.words[1] |= j >= 8 ? own << (4 * j - 32) : 0;
        } else {
          kept.words[0] |= own << (4 * j);
        }
      }
      const uint32_t shift = odd ? 2 : 0;
#pragma unroll
      for (uint32_t& word : kept.words) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, word, 1);
        const uint32_t upper = odd ? other : word;
        const uint32_t lower = odd ? word : other;
        word = (upper >> shift & 0x33333333u) | (lower >> shift & 0x33333333u) << 2;
      }
      return;
    }
    uint64_t bits = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < kScores; ++i) {
      const uint32_t position = first + 8 * (i / 4) + i % 2;
      const uint32_t row = query + 8 * (i / 2 % 2);
      bits |= static_cast<uint64_t>(kept_of(row, position >> 2) >> position % 4 & 1) << i;
    }
    kept.words[0] = static_cast<uint32_t>(bits);
    if constexpr (Shape::kKeys > 64) {
      kept.words[1] = static_cast<uint32_t>(bits >> 32);
    }
  }

  /// Clears the probabilities of dropped pairs.
  static __device__ __forceinline__ void drop(const Kept& kept, float (&weights)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      weights[i] = (kept.words[i / 32] >> (i % 32) & 1) != 0 ? weights[i] : 0;
    }
  }
};

}  // namespace flashloom::sm90
