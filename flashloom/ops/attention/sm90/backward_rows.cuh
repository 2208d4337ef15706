#pragma once

#include <cstdint>

#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/sm90/schedule.cuh"

// What surrounds the backward kernel: row sums before it, the conversion of dQ after it. One block
// of 256 threads a tile of queries; grid (tiles, heads, sequences).

namespace flashloom::sm90 {

/// A tensor (batch, heads, rows, dim) or packed (heads, rows, dim), strides in elements.
struct RowTensor {
  void* data;
  int64_t batch, head, row;

  template <class T>
  __device__ __forceinline__ T* at(int64_t b, int64_t h, int64_t r) const {
    return static_cast<T*>(data) + b * batch + h * head + r * row;
  }
};

struct BackwardRowParams {
  Problem problem;
  RowTensor out, dout, dq;
  RowTensor lse, dlse;  // dlse.data may be null
  float *padded_lse, *delta, *dq_sum;
  float scale;
  int32_t query_tiles;
};

/// delta = sum(dout * out) - dlse and lse in powers of two, in rows padded to whole tiles; clears
/// the sums of dQ.
template <class T, int kDim, int kQueries>
__global__ void __launch_bounds__(256)
    attention_backward_prepare_kernel(const __grid_constant__ BackwardRowParams params) {
  constexpr int kLanes = kDim / 8;
  const auto tile = static_cast<int32_t>(blockIdx.x);
  const auto head = static_cast<int32_t>(blockIdx.y);
  const auto sequence_index = static_cast<int32_t>(blockIdx.z);
  const Sequence sequence = sequence_of(params.problem, sequence_index);
  if (tile * kQueries >= sequence.query_rows) {
    return;
  }
  const int64_t batch = params.problem.cu_query != nullptr ? 0 : sequence_index;
  const int64_t place =
      (int64_t{sequence_index} * params.problem.heads + head) * params.query_tiles + tile;
  auto* sums = reinterpret_cast<float4*>(params.dq_sum + place * kQueries * kDim);
#pragma unroll
  for (int i = 0; i < kQueries * kDim / 1024; ++i) {
    sums[threadIdx.x + 256 * i] = make_float4(0, 0, 0, 0);
  }
  const auto lane = static_cast<int32_t>(threadIdx.x % kLanes);
#pragma unroll
  for (int first = 0; first < kQueries; first += 256 / kLanes) {
    const int32_t own = first + static_cast<int32_t>(threadIdx.x / kLanes);
    const int32_t query = tile * kQueries + own;
    const int64_t row = sequence.query_first + query;
    const bool exists = query < sequence.query_length;
    float sum = 0;
    if (exists) {
      const uint4 a =
          *reinterpret_cast<const uint4*>(params.out.at<T>(batch, head, row) + 8 * lane);
      const uint4 b =
          *reinterpret_cast<const uint4*>(params.dout.at<T>(batch, head, row) + 8 * lane);
      const uint32_t left[4] = {a.x, a.y, a.z, a.w};
      const uint32_t right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x, y, z, w;
        cuda::unpack2<T>(left[i], x, y);
        cuda::unpack2<T>(right[i], z, w);
        sum = fmaf(x, z, fmaf(y, w, sum));
      }
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (lane == 0) {
      float lse = INFINITY;
      if (exists) {
        lse = *params.lse.at<const float>(batch, head, row) * 1.4426950408889634f;
        lse = lse == -INFINITY ? INFINITY : lse;
        if (params.dlse.data != nullptr) {
          sum -= *params.dlse.at<const float>(batch, head, row);
        }
      }
      params.padded_lse[place * kQueries + own] = lse;
      params.delta[place * kQueries + own] = sum;
    }
  }
}

/// dq = scale * sums, which lie in the order of accumulator fragments (two 64 x 64 parts a tile:
/// the halves of the columns, or of the queries).
template <class T, int kDim, int kQueries>
__global__ void __launch_bounds__(256)
    attention_backward_finish_kernel(const __grid_constant__ BackwardRowParams params) {
  const auto tile = static_cast<int32_t>(blockIdx.x);
  const auto head = static_cast<int32_t>(blockIdx.y);
  const auto sequence_index = static_cast<int32_t>(blockIdx.z);
  const Sequence sequence = sequence_of(params.problem, sequence_index);
  if (tile * kQueries >= sequence.query_rows) {
    return;
  }
  const int64_t batch = params.problem.cu_query != nullptr ? 0 : sequence_index;
  const int64_t place =
      (int64_t{sequence_index} * params.problem.heads + head) * params.query_tiles + tile;
  const uint32_t group = threadIdx.x / 128;
  const uint32_t thread = threadIdx.x % 128;
  const uint32_t lane = threadIdx.x % 32;
  const auto* sums = reinterpret_cast<const float4*>(params.dq_sum + place * kQueries * kDim) +
                     group * 1024 + thread;
  float4 sum[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    sum[i] = sums[128 * i];
  }
  const auto own =
      static_cast<int32_t>((kDim == 64 ? group * 64 : 0) + (thread / 32) * 16 + lane / 4);
  const uint32_t column = (kDim == 128 ? group * 64 : 0) + 8 * (lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t query = tile * kQueries + own + 8 * half;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 value = sum[4 * part + i];
        words[i] = cuda::pack2<T>((half == 0 ? value.x : value.z) * params.scale,
                                  (half == 0 ? value.y : value.w) * params.scale);
      }
      cuda::quad_transpose(words, lane);
      if (query < sequence.query_rows) {
        *reinterpret_cast<uint4*>(params.dq.at<T>(batch, head, sequence.query_first + query) +
                                  column + 32 * part) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

}  // namespace flashloom::sm90
