#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_score.cuh"
#include "flashloom/ops/attention/sm90/backward_shape.cuh"

// What a consumer warpgroup of the backward kernel does to the scores of a step: 64 keys x
// kQueries, of which `key` is this thread's first and `query` the tile's first.

namespace flashloom::sm90 {

/// Which tiles of queries hide something from a warpgroup's 64 keys.
template <class Shape>
struct BackwardBorder {
  // Tiles [begin, end) hide nothing; where `work` is in shared memory.
  int32_t begin = 0, end = 0;

  __device__ __forceinline__ void find(const BackwardWork& work, int32_t group) {
    if constexpr (Shape::kStays && !Shape::kPieces) {
      const Sequence& sequence = work.sequence;
      const int32_t first_key = work.key + group * 64;
      const int32_t visible_end = sequence.query_end(first_key);
      begin = first_key + 64 > sequence.key_length
                  ? INT32_MAX
                  : (sequence.query_begin(first_key + 63) + Shape::kQueries - 1) / Shape::kQueries;
      end = visible_end < sequence.query_length ? visible_end / Shape::kQueries : INT32_MAX;
    }
  }

  __device__ __forceinline__ bool holds(const BackwardWork& work, int32_t group, int32_t t) const {
    if constexpr (Shape::kStays) {
      return t < begin || t >= end;
    }
    const Sequence& sequence = work.sequence;
    const int32_t first_key = work.key + group * 64;
    const int32_t visible_end = sequence.query_end(first_key);
    return first_key + 64 > sequence.key_length ||
           t * Shape::kQueries < sequence.query_begin(first_key + 63) ||
           (visible_end < sequence.query_length && (t + 1) * Shape::kQueries > visible_end);
  }
};

/// General scores: softcap, ALiBi and exclude_self. Raw products become scores in powers of two.
template <class Shape, int kScores>
__device__ __forceinline__ void adjust_scores(float (&scores)[kScores],
                                              uint32_t (&slopes)[kScores / 2],
                                              const BackwardParams& params,
                                              const BackwardWork& work, int32_t head, int32_t key,
                                              int32_t query, uint32_t lane) {
  const BackwardScore& score = params.score;
  const float alibi =
      score.slopes != nullptr
          ? score.slopes[work.batch * score.slope_batch + head * score.slope_head] * kLog2e
          : 0;
  const int32_t distance =
      key - (query + 2 * static_cast<int32_t>(lane % 4)) - work.sequence.offset;
  general_scores(scores, slopes, score, params.scale, alibi, distance);
  if (score.exclude_self) {
    hide_self(scores, distance);
  }
}

/// Hides what a partial block of a mask does, if this is one.
template <int kScores>
__device__ __forceinline__ void hide_by_bits(float (&scores)[kScores], const BackwardBlocks& blocks,
                                             int32_t partial, int32_t key, int32_t query,
                                             uint32_t lane) {
  if (partial < 0) {
    return;
  }
  const int32_t own = query + 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
  for (int part = 0; part < kScores / 32; ++part) {
    const uint32_t visible =
        kept_by_block(blocks, partial, (own + 64 * part) % blocks.queries, key % blocks.keys);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      float& score = scores[32 * part + i];
      score = (visible >> i & 1) != 0 ? score : -INFINITY;
    }
  }
}

/// The pairs that dropout keeps.
template <int kScores>
__device__ __forceinline__ uint32_t kept_of_step(const BackwardParams& params,
                                                 const BackwardWork& work, int32_t head,
                                                 int32_t key, int32_t query, uint32_t lane) {
  const int32_t key_start = params.problem.key_start;
  const auto own =
      static_cast<uint32_t>(work.sequence.query_start + query + 2 * static_cast<int32_t>(lane % 4));
  return kept_by_dropout<kScores>(
      params.score, static_cast<uint32_t>(work.batch), static_cast<uint32_t>(head), own,
      static_cast<uint32_t>(key_start + key), static_cast<uint32_t>(key_start));
}

}  // namespace flashloom::sm90
