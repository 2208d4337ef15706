#pragma once

#include <cstdint>
#include <type_traits>

#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/decode/decode_params.cuh"

namespace flashloom::decode {

/// Largest score of a row before it has seen a key: finite, so that differences never are NaN.
inline constexpr float kNothing = -1e30f;

/// One of the two rows of a lane: lane / 4 and eight below it.
struct Row {
  int32_t first, last;  // keys it sees
  float position;       // of the query less that of key 0, for ALiBi
  float slope;          // ALiBi, in units of log 2
};

/// What a warp knows of its 16 rows.
template <class Shape>
struct RowState {
  uint32_t q[Shape::kQueriesInShared ? 1 : Shape::kDim / 16][4];
  // mma.sync: operands (kDim / 16, 32) of this warp's rows, 16 bytes a lane. wgmma: a tile of
  // panels.
  std::conditional_t<Shape::kWarpgroups, uint32_t, const char*> shared_q;
  float out[Shape::kDim / 8][4];
  float largest[2], sum[2];  // the sum is that of a lane's own keys
  Row row[2];
  int32_t all_first, all_last;  // keys that all rows see

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& piece : out) {
      piece[0] = piece[1] = piece[2] = piece[3] = 0;
    }
    largest[0] = largest[1] = kNothing;
    sum[0] = sum[1] = 0;
  }

  /// Sums of all lanes of a row.
  __device__ __forceinline__ void add_lanes() {
#pragma unroll
    for (float& own : sum) {
      own += __shfl_xor_sync(0xffffffffu, own, 1);
      own += __shfl_xor_sync(0xffffffffu, own, 2);
    }
  }
};

/// Raw products of kJoint x 16 keys, as accumulators of m16n8 and m64nN hold them.
template <class Shape>
using Scores = float[2 * Shape::kJoint][4];

/// The score of a raw product in base 2, where it is more than the product times a positive scale.
__device__ __forceinline__ float finish_score(const Params& params, const Row& row, float score,
                                              int32_t key) {
  float x = score * params.scale;
  if (params.cap != 0) {
    const float e = cuda::exp2_fast(score * params.cap_scale);
    x = params.cap - __fdividef(2 * params.cap, e + 1);
  }
  if (params.alibi != nullptr) {
    x -= row.slope * fabsf(static_cast<float>(key) - row.position);
  }
  return x;
}

/// From raw products, from key `first_key` on, to weights relative to the running maximum; sums and
/// results so far follow it.
template <class Shape>
__device__ __forceinline__ void weigh(const Params& params, RowState<Shape>& state,
                                      Scores<Shape>& scores, int32_t first_key) {
  constexpr int kJoint = Shape::kJoint;
  const uint32_t lane = threadIdx.x % 32;
  // Whole loops under one branch each: a branch an element costs more than the products do.
  if (params.adjusts != 0) {
#pragma unroll
    for (int j = 0; j < 8 * kJoint; ++j) {
      const int32_t key = first_key + j / 4 * 8 + static_cast<int32_t>(lane % 4) * 2 + j % 2;
      scores[j / 4][j % 4] = finish_score(params, state.row[j / 2 % 2], scores[j / 4][j % 4], key);
    }
  }
  if (first_key < state.all_first || first_key + 16 * kJoint > state.all_last) {
#pragma unroll
    for (int j = 0; j < 8 * kJoint; ++j) {
      const int32_t key = first_key + j / 4 * 8 + static_cast<int32_t>(lane % 4) * 2 + j % 2;
      const Row& row = state.row[j / 2 % 2];
      if (key < row.first || key >= row.last) {
        scores[j / 4][j % 4] = -INFINITY;
      }
    }
  }
  bool grows = false;
  float largest[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    // Two chains of maxima, and the quad's.
    float even = state.largest[r];
    float odd = kNothing;
#pragma unroll
    for (auto& piece : scores) {
      even = fmaxf(even, piece[2 * r]);
      odd = fmaxf(odd, piece[2 * r + 1]);
    }
    largest[r] = fmaxf(even, odd);
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 2));
    grows = grows || largest[r] > state.largest[r];
  }
  if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = cuda::exp2_fast((state.largest[r] - largest[r]) * params.unit);
      state.largest[r] = largest[r];
      state.sum[r] *= factor;
#pragma unroll
      for (auto& piece : state.out) {
        piece[2 * r] *= factor;
        piece[2 * r + 1] *= factor;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float shift = largest[r] * params.unit;
#pragma unroll
    for (int j = 0; j < 4 * kJoint; ++j) {
      float& score = scores[j / 2][2 * r + j % 2];
      score = cuda::exp2_fast(fmaf(score, params.unit, -shift));
      state.sum[r] += score;
    }
  }
}

}  // namespace flashloom::decode
