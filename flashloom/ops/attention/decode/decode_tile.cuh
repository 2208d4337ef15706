#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/decode/decode_params.cuh"

namespace flashloom::decode {

/// Largest score of a row before it has seen a key: finite, so that differences never are NaN.
inline constexpr float kNothing = -1e30f;

/// Bits that a row of a tile of keys adds (exclusive or) to the address of its 16-byte chunks, so
/// that the eight rows of a matrix lie in different banks. Rows of 192 bytes start at every other
/// bank already.
template <int kDim>
__device__ __forceinline__ uint32_t swizzle(uint32_t row) {
  return (kDim % 64 == 0 ? row & 7 : (row >> 1) & 3) * 16;
}

/// Where the keys of one (sequence, key-value head) lie.
struct KeySource {
  const char* k;
  const char* v;
  const int32_t* pages;  // of the sequence; null without a page table
  int32_t last;          // keys behind it are not read
};

/// Page and row in it of a lane's key of a tile.
struct Place {
  int32_t page, row;
};

template <class Shape>
__device__ __forceinline__ Place look_up(const Params& params, const KeySource& keys,
                                         int32_t first_key) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t key = first_key + lane;
  Place place = {0, 0};
  if (keys.pages != nullptr && lane < Shape::kTileKeys && key < keys.last) {
    const int32_t entry = key / params.page_size;
    place.page = keys.pages[entry];
    place.row = key - entry * params.page_size;
    if (place.page < 0 || place.page >= params.page_count) {
      place.page = 0;
      if (params.status != nullptr) {
        *params.status = 1;
      }
    }
  }
  return place;
}

/// Starts the copies of a tile of K and V into a stage. Keys behind the last one become zeros.
template <class Shape>
__device__ __forceinline__ void load_tile(const Params& params, const KeySource& keys,
                                          int32_t first_key, const Place& place, uint32_t stage,
                                          uint32_t team_thread) {
  constexpr int kCopies = Shape::kTileKeys * Shape::kChunks / Shape::kTeamThreads;
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const uint32_t index = i * Shape::kTeamThreads + team_thread;
    const uint32_t row = index / Shape::kChunks;
    const uint32_t chunk = index % Shape::kChunks;
    const auto key = first_key + static_cast<int32_t>(row);
    const bool exists = key < keys.last;
    int64_t k_offset = int64_t{exists ? key : first_key} * params.k.row;
    int64_t v_offset = int64_t{exists ? key : first_key} * params.v.row;
    if (keys.pages != nullptr) {
      const int32_t page = __shfl_sync(0xffffffffu, place.page, static_cast<int>(row));
      const int32_t in_page = __shfl_sync(0xffffffffu, place.row, static_cast<int>(row));
      k_offset = page * params.k.sequence + in_page * params.k.row;
      v_offset = page * params.v.sequence + in_page * params.v.row;
    }
    const uint32_t target =
        stage + row * Shape::kDim * 2 + ((chunk * 16) ^ swizzle<Shape::kDim>(row));
    const bool in_k = static_cast<int32_t>(chunk) < params.k.chunks;
    const bool in_v = static_cast<int32_t>(chunk) < params.v.chunks;
    cuda::cp_async_16(target, keys.k + k_offset + (in_k ? chunk * 16 : 0), exists && in_k);
    cuda::cp_async_16(target + Shape::kTileBytes, keys.v + v_offset + (in_v ? chunk * 16 : 0),
                      exists && in_v);
  }
}

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
  const uint4* shared_q;  // (kDim / 16, 32) of this warp's rows
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
};

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

/// kJoint x 16 keys, from key `first_key` on, whose rows start at `stage` (K; V a tile behind).
template <class Shape>
__device__ __forceinline__ void attend(const Params& params, RowState<Shape>& state, uint32_t stage,
                                       int32_t first_key) {
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

  float scores[2 * kJoint][4] = {};
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) {
    uint32_t q[4];
    if constexpr (Shape::kQueriesInShared) {
      const uint4 words = state.shared_q[c * 32 + lane];
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

  const bool plain = params.cap == 0 && params.alibi == nullptr;
  const bool masked = first_key < state.all_first || first_key + 16 * kJoint > state.all_last;
  bool grows = false;
  float largest[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Row& row = state.row[r];
    largest[r] = state.largest[r];
#pragma unroll
    for (int j = 0; j < 4 * kJoint; ++j) {
      float& score = scores[j / 2][2 * r + j % 2];
      const int32_t key = first_key + j / 2 * 8 + static_cast<int32_t>(lane % 4) * 2 + j % 2;
      score = plain ? score * params.scale : finish_score(params, row, score, key);
      if (masked && (key < row.first || key >= row.last)) {
        score = -INFINITY;
      }
      largest[r] = fmaxf(largest[r], score);
    }
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 2));
    grows = grows || largest[r] > state.largest[r];
  }
  if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = cuda::exp2_fast(state.largest[r] - largest[r]);
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
#pragma unroll
    for (int j = 0; j < 4 * kJoint; ++j) {
      float& score = scores[j / 2][2 * r + j % 2];
      score = cuda::exp2_fast(score - largest[r]);
      state.sum[r] += score;
    }
  }
#pragma unroll
  for (int s = 0; s < kJoint; ++s) {
    const float(&left)[4] = scores[2 * s];
    const float(&right)[4] = scores[2 * s + 1];
    const uint32_t weights[4] = {cuda::pack2<T>(left[0], left[1]), cuda::pack2<T>(left[2], left[3]),
                                 cuda::pack2<T>(right[0], right[1]),
                                 cuda::pack2<T>(right[2], right[3])};
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

}  // namespace flashloom::decode
