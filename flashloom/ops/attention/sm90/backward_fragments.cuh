#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/sm90/backward_shape.cuh"

// What a thread of the backward kernels does with its fragment of a tile: element
// 4 j + 2 half + c is row lane / 4 + 8 half of the warp's 16, column 8 j + 2 (lane % 4) + c.

namespace flashloom::sm90 {

/// Hides pairs of a tile of keys x queries; `key` is this thread's first key, `query` the tile's
/// first query.
template <int kScores>
__device__ __forceinline__ void hide_queries(float (&scores)[kScores], const Sequence& sequence,
                                             int32_t key, int32_t query, uint32_t lane) {
  const int32_t first = query + 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t own = key + 8 * half;
    const int32_t begin = sequence.query_begin(own) - first;
    const int32_t end = own < sequence.key_length ? sequence.query_end(own) - first : INT32_MIN;
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      const int32_t place = 8 * (i / 2) + i % 2;
      float& score = scores[4 * (i / 2) + 2 * half + i % 2];
      score = place >= begin && place < end ? score : -INFINITY;
    }
  }
}

/// Hides pairs of a tile of queries x keys; `query` is this thread's first query, `key` the tile's
/// first key.
template <int kScores>
__device__ __forceinline__ void hide_keys(float (&scores)[kScores], const Sequence& sequence,
                                          int32_t query, int32_t key, uint32_t lane) {
  const int32_t first = key + 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t own = query + 8 * half;
    const int32_t begin = sequence.key_begin(own) - first;
    const int32_t end = sequence.key_end(own) - first;
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      const int32_t place = 8 * (i / 2) + i % 2;
      float& score = scores[4 * (i / 2) + 2 * half + i % 2];
      score = place >= begin && place < end ? score : -INFINITY;
    }
  }
}

/// Scores of keys x queries -> P, in place and rounded; `lse` of this thread's first column on.
template <class T, int kScores>
__device__ __forceinline__ void exponentials(float (&scores)[kScores],
                                             uint32_t (&weights)[kScores / 2], float scale,
                                             const float* lse) {
  using namespace cuda;
  float2 values[kScores / 4];
#pragma unroll
  for (int j = 0; j < kScores / 4; ++j) {
    values[j] = *reinterpret_cast<const float2*>(lse + 8 * j);
  }
#pragma unroll
  for (int j = 0; j < kScores / 4; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& a = scores[4 * j + 2 * half];
      float& b = scores[4 * j + 2 * half + 1];
      a = exp2_fast(fmaf(a, scale, -values[j].x));
      b = exp2_fast(fmaf(b, scale, -values[j].y));
      weights[2 * j + half] = pack2<T>(a, b);
    }
  }
}

/// The same, not rounded.
template <int kScores>
__device__ __forceinline__ void exponentials_in_place(float (&scores)[kScores], float scale,
                                                      const float* lse) {
#pragma unroll
  for (int j = 0; j < kScores / 4; ++j) {
    const float2 less = *reinterpret_cast<const float2*>(lse + 8 * j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& a = scores[4 * j + 2 * half];
      float& b = scores[4 * j + 2 * half + 1];
      a = cuda::exp2_fast(fmaf(a, scale, -less.x));
      b = cuda::exp2_fast(fmaf(b, scale, -less.y));
    }
  }
}

/// P -> the operand of dV.
template <class T, int kScores>
__device__ __forceinline__ void round_to(uint32_t (&weights)[kScores / 2],
                                         const float (&scores)[kScores]) {
#pragma unroll
  for (int i = 0; i < kScores / 2; ++i) {
    weights[i] = cuda::pack2<T>(scores[2 * i], scores[2 * i + 1]);
  }
}

/// Pairs that dropout does not keep -> 0.
template <int kWords>
__device__ __forceinline__ void drop_pairs(uint32_t (&weights)[kWords], uint32_t kept) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    weights[i] &= ((kept >> (2 * i) & 1) != 0 ? 0xffffu : 0u) |
                  ((kept >> (2 * i + 1) & 1) != 0 ? 0xffff0000u : 0u);
  }
}

/// The sum of products of eight elements.
template <class T>
__device__ __forceinline__ float row_product(const uint4& a, const uint4& b) {
  const uint32_t left[4] = {a.x, a.y, a.z, a.w};
  const uint32_t right[4] = {b.x, b.y, b.z, b.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float x, y, z, w;
    cuda::unpack2<T>(left[i], x, y);
    cuda::unpack2<T>(right[i], z, w);
    sum = fmaf(x, z, fmaf(y, w, sum));
  }
  return sum;
}

/// Writes rows of a fragment of 64 x kDim sums: row `first` + 8 half of `out` if below `rows`, as 0
/// from `used` on. `padded`: `out` has only `columns` columns.
template <class T, int kDim>
__device__ __forceinline__ void store_rows(const float (&sum)[kDim / 2], float factor,
                                           const RowTensor& out, int64_t batch, int32_t head,
                                           int32_t tensor_row, int32_t first, int32_t used,
                                           int32_t rows, bool accumulate, bool padded,
                                           int32_t columns, uint32_t lane) {
  const auto quad = static_cast<int32_t>(lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = first + 8 * half;
    const int64_t place = tensor_row + row;
    const bool stored = row < rows;
    const bool exists = row < used;
    if (out.wide) {
      auto* to = reinterpret_cast<float2*>(out.at<float>(batch, head, place)) + quad;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        float2 value = {exists ? sum[4 * j + 2 * half] * factor : 0,
                        exists ? sum[4 * j + 2 * half + 1] * factor : 0};
        const bool written = stored && (!padded || 8 * j < columns);
        if (written && accumulate) {
          value.x += to[4 * j].x;
          value.y += to[4 * j].y;
        }
        if (written) {
          to[4 * j] = value;
        }
      }
      continue;
    }
    T* to = out.at<T>(batch, head, place);
#pragma unroll
    for (int group = 0; group < kDim / 32; ++group) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = 4 * group + i;
        const uint32_t packed =
            cuda::pack2<T>(sum[4 * j + 2 * half] * factor, sum[4 * j + 2 * half + 1] * factor);
        words[i] = exists ? packed : 0;
      }
      cuda::quad_transpose(words, lane);
      const int32_t column = 32 * group + 8 * quad;
      if (stored && (!padded || column < columns)) {
        *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

}  // namespace flashloom::sm90
