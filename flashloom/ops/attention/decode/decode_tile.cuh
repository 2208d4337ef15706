#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

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

/// A thread's view of the keys of one (sequence, key-value head): the row of a tile and the chunk
/// of it that it copies first.
struct KeyCopies {
  const char* k;
  const char* v;
  const int32_t* pages;  // of the sequence; null without a page table
  int32_t first, last;   // keys outside are not read; they become zeros
  uint32_t target;       // in a stage, before the swizzle's part of it
  uint32_t swizzled;
  bool regular;  // a tile's keys lie one behind the other: no pages, or pages of whole tiles
};

template <class Shape>
__device__ __forceinline__ KeyCopies key_copies(const Params& params, const Unit& unit,
                                                const Work& work) {
  const uint32_t thread = threadIdx.x % Shape::kTeamThreads;
  const uint32_t row = thread / Shape::kWidth;
  const uint32_t chunk = thread % Shape::kWidth * 16;
  const bool paged = params.pages != nullptr;
  const int64_t sequence = paged ? 0 : unit.sequence;
  KeyCopies copies;
  copies.k = params.k.data + sequence * params.k.sequence + unit.key_head * params.k.head +
             work.rows.key_first * params.k.row + chunk;
  copies.v = params.v.data + sequence * params.v.sequence + unit.key_head * params.v.head +
             work.rows.key_first * params.v.row + chunk;
  copies.pages = paged ? params.pages + unit.sequence * params.pages_sequence : nullptr;
  copies.first = work.first;
  copies.last = work.last;
  copies.target = row * Shape::kDim * 2;
  copies.swizzled = chunk ^ swizzle<Shape::kDim>(row);
  copies.regular = !paged || params.page_size.divisor % Shape::kTileKeys == 0;
  return copies;
}

/// The page of a key, and its row there. A page out of range is clamped and reported.
__device__ __forceinline__ int32_t page_of(const Params& params, const int32_t* pages,
                                           int32_t key) {
  const int32_t page = pages[params.page_size.quotient(key)];
  if (page >= 0 && page < params.page_count) {
    return page;
  }
  if (params.status != nullptr) {
    *params.status = 1;
  }
  return 0;
}

__device__ __forceinline__ int32_t row_in_page(const Params& params, int32_t key) {
  return key - params.page_size.quotient(key) * static_cast<int32_t>(params.page_size.divisor);
}

/// The page of a tile of regular copies; 0 without pages. Apart from load_tile(), so that it can be
/// known a tile ahead. The first key of a tile may be one that is not read, the last never is.
template <class Shape>
__device__ __forceinline__ int32_t tile_page(const Params& params, const KeyCopies& copies,
                                             int32_t tile_key) {
  return copies.pages != nullptr && copies.regular
             ? page_of(params, copies.pages, max(tile_key, copies.first))
             : 0;
}

/// Starts the copies of a tile of K and V into a stage.
template <class Shape>
__device__ __forceinline__ void load_tile(const Params& params, const KeyCopies& copies,
                                          int32_t tile_key, int32_t page, uint32_t stage) {
  constexpr int kRowSteps = Shape::kTileKeys / Shape::kRowsOnce;
  constexpr int kColumnSteps = Shape::kChunks / Shape::kWidth;
  const uint32_t thread = threadIdx.x % Shape::kTeamThreads;
  const int32_t key = tile_key + static_cast<int32_t>(thread / Shape::kWidth);
  const auto chunk = static_cast<int32_t>(thread % Shape::kWidth);
  const auto visible = static_cast<uint32_t>(copies.last - copies.first);
  const auto copy_row = [&](int step, const char* k, const char* v) {
    const bool exists =
        static_cast<uint32_t>(key + step * Shape::kRowsOnce - copies.first) < visible;
    const uint32_t target = stage + copies.target +
                            (copies.swizzled ^ swizzle<Shape::kDim>(step * Shape::kRowsOnce)) +
                            step * Shape::kRowsOnce * Shape::kDim * 2;
#pragma unroll
    for (int c = 0; c < kColumnSteps; ++c) {
      const int offset = c * Shape::kWidth;
      cuda::cp_async_16(target + offset * 16, k + offset * 16,
                        exists && chunk + offset < params.k.chunks);
      cuda::cp_async_16(target + Shape::kTileBytes + offset * 16, v + offset * 16,
                        exists && chunk + offset < params.v.chunks);
    }
  };
  if (copies.regular) {
    const int32_t row =
        copies.pages != nullptr ? row_in_page(params, tile_key) + key - tile_key : key;
    const char* k = copies.k + page * params.k.sequence + row * params.k.row;
    const char* v = copies.v + page * params.v.sequence + row * params.v.row;
    const int64_t k_step = Shape::kRowsOnce * params.k.row;
    const int64_t v_step = Shape::kRowsOnce * params.v.row;
#pragma unroll
    for (int step = 0; step < kRowSteps; ++step) {
      copy_row(step, k, v);
      k += k_step;
      v += v_step;
    }
  } else {
#pragma unroll 1
    for (int step = 0; step < kRowSteps; ++step) {
      const int32_t own = min(max(key + step * Shape::kRowsOnce, copies.first), copies.last - 1);
      const int32_t own_page = page_of(params, copies.pages, own);
      const int32_t row = row_in_page(params, own);
      copy_row(step, copies.k + own_page * params.k.sequence + row * params.k.row,
               copies.v + own_page * params.v.sequence + row * params.v.row);
    }
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
