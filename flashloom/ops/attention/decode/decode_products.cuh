#pragma once

#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/decode/decode_state.cuh"
#include "flashloom/ops/attention/decode/decode_tile.cuh"

namespace flashloom::decode {

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
