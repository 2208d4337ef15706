#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/decode/decode_tile.cuh"

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

/// Weights of 16 keys, rounded, as an operand.
template <class T>
__device__ __forceinline__ void pack_weights(const float (&left)[4], const float (&right)[4],
                                             uint32_t (&weights)[4]) {
  weights[0] = cuda::pack2<T>(left[0], left[1]);
  weights[1] = cuda::pack2<T>(left[2], left[3]);
  weights[2] = cuda::pack2<T>(right[0], right[1]);
  weights[3] = cuda::pack2<T>(right[2], right[3]);
}

/// kJoint x 16 keys, from key `first_key` on, whose rows start at `stage` (K; V a tile behind), by
/// one warp.
template <class Shape>
__device__ __forceinline__ void attend_by_warp(const Params& params, RowState<Shape>& state,
                                               uint32_t stage, int32_t first_key) {
  using T = typename Shape::Type;
  constexpr int kDim = Shape::kDim;
  constexpr int kJoint = Shape::kJoint;
  constexpr int kStepBytes = 16 * kDim * 2;
  const uint32_t lane = threadIdx.x % 32;
  // Rows of the matrices that this lane names, and the chunk of the first ones.
  const uint32_t k_row = lane / 16 * 8 + lane % 8;
  const uint32_t v_row = lane % 16;
  const uint32_t k_base = stage + k_row * kDim * 2;
  const uint32_t v_base = stage + Shape::kTileBytes + v_row * kDim * 2;
  const uint32_t k_chunk = (lane / 8 % 2 * 16) ^ swizzle<kDim>(k_row);
  const uint32_t v_chunk = (lane / 16 * 16) ^ swizzle<kDim>(v_row);

  Scores<Shape> scores = {};
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) {
    uint32_t q[4];
    if constexpr (Shape::kQueriesInShared) {
      const uint4 words = reinterpret_cast<const uint4*>(state.shared_q)[c * 32 + lane];
      q[0] = words.x;
      q[1] = words.y;
      q[2] = words.z;
      q[3] = words.w;
    } else {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        q[part] = state.q[c][part];
      }
    }
#pragma unroll
    for (int s = 0; s < kJoint; ++s) {
      uint32_t k[4];
      cuda::ldmatrix_x4(k, k_base + (k_chunk ^ (c * 32 & 127)) + (c * 32 & ~127) + s * kStepBytes);
      cuda::mma_16x8x16<T>(scores[2 * s], q, k[0], k[1]);
      cuda::mma_16x8x16<T>(scores[2 * s + 1], q, k[2], k[3]);
    }
  }
  weigh<Shape>(params, state, scores, first_key);
#pragma unroll
  for (int s = 0; s < kJoint; ++s) {
    uint32_t weights[4];
    pack_weights<T>(scores[2 * s], scores[2 * s + 1], weights);
#pragma unroll
    for (int c = 0; c < kDim / 16; ++c) {
      uint32_t v[4];
      cuda::ldmatrix_x4_transposed(
          v, v_base + (v_chunk ^ (c * 32 & 127)) + (c * 32 & ~127) + s * kStepBytes);
      cuda::mma_16x8x16<T>(state.out[2 * c], weights, v[0], v[1]);
      cuda::mma_16x8x16<T>(state.out[2 * c + 1], weights, v[2], v[3]);
    }
  }
}

/// A tile of keys, from key `first_key` on, whose panels start at `stage` (K; V a tile behind), by
/// a warpgroup: 64 rows read each key once. The products are not overlapped.
template <class Shape>
__device__ __forceinline__ void attend_by_warpgroup(const Params& params, RowState<Shape>& state,
                                                    uint32_t stage, int32_t first_key) {
  using namespace cuda;
  using T = typename Shape::Type;
  constexpr int kDim = Shape::kDim;
  constexpr int kKeys = Shape::kTileKeys;
  using ScoreProduct = Wgmma<T, kKeys>;
  using OutProduct = Wgmma<T, kDim>;
  const uint64_t k = k_major_descriptor(stage);
  const uint64_t v = mn_major_descriptor(stage + Shape::kTileBytes, kKeys);

  Scores<Shape> scores;
  auto& score_registers = reinterpret_cast<float(&)[kKeys / 2]>(scores);
  wgmma_fence();
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) {
    const uint64_t b = moved_descriptor(k, k_major_step(c, kKeys));
    if constexpr (Shape::kQueriesInShared) {
      const uint64_t q = k_major_descriptor(state.shared_q);
      ScoreProduct::template from_shared<Major::kReduced, Major::kReduced>(
          score_registers, moved_descriptor(q, k_major_step(c, Shape::kRows)), b, c != 0);
    } else {
      ScoreProduct::template from_registers<Major::kReduced>(
          score_registers, state.q[c][0], state.q[c][1], state.q[c][2], state.q[c][3], b, c != 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(score_registers);
  weigh<Shape>(params, state, scores, first_key);
  uint32_t weights[kKeys / 16][4];
#pragma unroll
  for (int s = 0; s < kKeys / 16; ++s) {
    pack_weights<T>(scores[2 * s], scores[2 * s + 1], weights[s]);
  }
  auto& out_registers = reinterpret_cast<float(&)[kDim / 2]>(state.out);
  wgmma_hold(out_registers);
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < kKeys / 16; ++s) {
    OutProduct::template from_registers<Major::kOther>(out_registers, weights[s][0], weights[s][1],
                                                       weights[s][2], weights[s][3],
                                                       moved_descriptor(v, mn_major_step(s)), 1);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(out_registers);
}

}  // namespace flashloom::decode
