#pragma once

#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/forward_rows.cuh"
#include "flashloom/ops/attention/sm90/forward_scores.cuh"

// The arithmetic of a consumer warpgroup: its products and the online softmax.

namespace flashloom::sm90 {

/// One consumer warpgroup's tile of queries.
template <class Shape>
struct ForwardConsumer {
  using T = typename Shape::T;
  using ScoreProduct = cuda::Wgmma<T, Shape::kKeys>;
  using OutProduct = cuda::Wgmma<T, Shape::kDim>;
  static constexpr int kScores = Shape::kKeys / 2;
  static constexpr int kEighths = Shape::kKeys / 8;  // groups of eight keys

  float out[Shape::kDim / 2];
  float scores[kScores];
  uint32_t weights[kScores / 2];  // probabilities as the next product's A operand
  float maximum[2];               // what the exponents are relative to, in units of raw scores
  float limit[2];                 // scores above it move the maximum
  float sum[2];

  __device__ __forceinline__ void start_rows() {
    maximum[0] = maximum[1] = -INFINITY;
    limit[0] = limit[1] = -0.0f;  // the least of all integers: any score reaches it
    sum[0] = sum[1] = 0;
  }

  __device__ __forceinline__ void issue_scores(uint32_t q, uint32_t k) {
    using namespace cuda;
    const uint64_t a = k_major_descriptor(q);
    const uint64_t b = k_major_descriptor(k);
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      ScoreProduct::template from_shared<Major::kReduced, Major::kReduced>(
          scores, moved_descriptor(a, k_major_step(step, Shape::kRows)),
          moved_descriptor(b, k_major_step(step, Shape::kKeys)), step != 0);
    }
    wgmma_commit();
  }

  /// With `fresh` the sum starts at 0, whatever `out` holds.
  __device__ __forceinline__ void issue_out(uint32_t v, bool fresh) {
    using namespace cuda;
    const uint64_t b = mn_major_descriptor(v, Shape::kKeys);
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      OutProduct::template from_registers<Major::kOther>(
          out, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
          weights[4 * step + 3], moved_descriptor(b, mn_major_step(step)), step != 0 || !fresh);
    }
    wgmma_commit();
  }

  /// Moves the maximum where a score exceeds `limit` (see set_limits()): until then `out` needs no
  /// scaling. Returns whether `factor` must be applied to `out`.
  __device__ __forceinline__ bool settle_maximum(const ForwardParams& params, float (&factor)[2]) {
    const bool negative = limit[0] < 0 || limit[1] < 0;
    int32_t highest[2];
    find_highest(scores, highest);
    const bool reaches =
        highest[0] >= __float_as_int(limit[0]) || highest[1] >= __float_as_int(limit[1]);
    // One vote where nothing moves, as in most steps.
    bool moves = __any_sync(0xffffffffu, reaches || negative) != 0;
    if (moves) {
      if (__any_sync(0xffffffffu, negative) != 0) {
        uint32_t lowest[2];
        find_lowest(scores, lowest);
        bool exceeds = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          exceeds = exceeds || (limit[half] < 0 ? lowest[half] < __float_as_uint(limit[half])
                                                : highest[half] >= __float_as_int(limit[half]));
        }
        moves = __any_sync(0xffffffffu, exceeds) != 0;
      }
      if (moves) {
        move_maximum(params.scale_log2, highest, factor);
      }
    }
    return moves;
  }

  /// The exact maximum of a tile's first scores.
  __device__ __forceinline__ void first_maximum(const ForwardParams& params) {
    int32_t highest[2];
    float factor[2];
    maximum[0] = maximum[1] = -INFINITY;
    find_highest(scores, highest);
    move_maximum(params.scale_log2, highest, factor);
    sum[0] = sum[1] = 0;
  }

  /// Scores of keys [8 kFirst, 8 kEnd) become exponentials and are summed.
  template <int kFirst, int kEnd>
  __device__ __forceinline__ void exponentials(const ForwardParams& params) {
    const float scale_log2 = params.scale_log2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = maximum[half] == -INFINITY ? 0 : maximum[half] * scale_log2;
#pragma unroll
      for (int j = kFirst; j < kEnd; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[4 * j + 2 * half + c];
          score = cuda::exp2_fast(fmaf(score, scale_log2, -shift));
        }
      }
    }
    float even[2] = {0, 0};
#pragma unroll
    for (int j = kFirst; j < kEnd; ++j) {
      sum[0] += scores[4 * j];
      sum[1] += scores[4 * j + 2];
      even[0] += scores[4 * j + 1];
      even[1] += scores[4 * j + 3];
    }
    sum[0] += even[0];
    sum[1] += even[1];
  }

  /// Moves `maximum` to the exact maximum of each row.
  __device__ __forceinline__ void move_maximum(float scale_log2, int32_t (&highest)[2],
                                               float (&factor)[2]) {
    float row[2];
    find_row_maximum(scores, highest, row);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[half] = fmaxf(row[half], maximum[half]);
      const float base = row[half] == -INFINITY ? 0 : row[half];
      factor[half] = cuda::exp2_fast((maximum[half] - base) * scale_log2);
      sum[half] *= factor[half];
      maximum[half] = row[half];
    }
  }

  /// After the maximum has moved: how far scores may exceed it before it moves again. Half of the
  /// row's sum, so that a key that takes more than a third of its row has weight 1, which rounds to
  /// itself; at most 8 powers of two.
  __device__ __forceinline__ void set_limits(const ForwardParams& params) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float whole = sum[half];
      whole += __shfl_xor_sync(0xffffffffu, whole, 1);
      whole += __shfl_xor_sync(0xffffffffu, whole, 2);
      const float room = fminf(fmaxf(__log2f(whole) - 1, 0), 8);
      limit[half] = fmaf(room, params.inverse_scale, maximum[half]);
    }
  }

  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      weights[i] = cuda::pack2<T>(scores[2 * i], scores[2 * i + 1]);
    }
  }
};

}  // namespace flashloom::sm90
