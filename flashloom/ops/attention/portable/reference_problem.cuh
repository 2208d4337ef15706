#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <limits>

#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/fp8_storage.h"
#include "flashloom/ops/attention/portable/pairs.cuh"

// What the reference kernels know about a call, and the score of a pair. `Real` is double in the
// library; tests run the same loops in float for the other side of the law (attention_test_law.h).

namespace flashloom::portable {

/// Rows of a tensor (B, heads, S, width) or of scalars (B, heads, S), packed ones with a batch
/// stride of 0; any storage.
struct ReferenceRows {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch = 0, head = 0, row = 0;  // strides in elements

  __device__ __forceinline__ int64_t at(int64_t b, int64_t h, int64_t r) const {
    return b * batch + h * head + r * row;
  }
};

/// Numbers by (sequence, head): scales, slopes, sinks; strides of 0 broadcast.
struct ReferenceNumbers {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t sequence = 0, head = 0;
};

struct ReferenceGate {
  AttentionGate::Kind kind = AttentionGate::Kind::none;
  int64_t rows = 1, keys = 1;
  const float* threshold = nullptr;
  int64_t threshold_head = 0, threshold_block = 0, threshold_count = 1;
  uint32_t* kept = nullptr;  // of the caller, or absent; strides in words
  int64_t kept_sequence = 0, kept_head = 0, kept_block = 0, kept_word = 1;
  ReferenceRows dropped_mass;     // likewise
  int32_t row_blocks = 0;         // of the longest sequence
  int32_t words = 0;              // of a row block's bitmap
  uint32_t* bitmap = nullptr;     // workspace (B, H, row blocks, words)
  double* row_numbers = nullptr;  // workspace (B, H, S_q, 3): running maximum, maximum of the
                                  // tile, what was lost
};

struct ReferenceParams {
  GeometrySource source;
  int32_t partial_count = 0;
  int32_t head_dim = 0, value_dim = 0;
  ReferenceRows q, k, v, out, lse, entropy;
  const int32_t* page_table = nullptr;
  int64_t page_table_stride = 0;
  int32_t page_size = 1, page_count = 0;
  double scale = 1, softcap = 0;
  ReferenceNumbers slopes, sinks, q_scale, k_scale, v_scale, out_scale;
  ReferenceRows bias;       // (B, H, S_q), strides of 0 broadcast; columns side by side
  double drop = 0;          // probability
  uint64_t drop_below = 0;  // random bits below it drop a pair
  const uint64_t* seed = nullptr;
  const uint64_t* seed_offset = nullptr;
  float* amax = nullptr;
  double entropy_order = 1;
  ReferenceGate gate;
  DType rounding = DType::f64;  // of P and dS; f64: none

  // Backward.
  ReferenceRows dout, dlse, dentropy, dq, dk, dv;
  ReferenceRows dsinks;  // (H) with a row stride
  ReferenceRows dbias;   // (B or 1, H or 1, S_q or 1, S_k), strides as they are
  int32_t dbias_sequences = 0, dbias_heads = 0, dbias_rows = 0, dbias_columns = 0;
  bool accumulate = false;
  void* row_numbers = nullptr;  // workspace (B, H, S_q, 4) Real: see ReferenceRowNumbers
};

template <class Real>
__device__ __forceinline__ Real load_real(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::f64:
      return static_cast<Real>(static_cast<const double*>(data)[index]);
    case DType::bf16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
    case DType::f16:
      return __half2float(static_cast<const __half*>(data)[index]);
    case DType::e4m3:
      return e4m3_to_float(static_cast<const uint8_t*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

/// Through f32 but for f64 storage, as the reference on the CPU rounds.
template <class Real>
__device__ __forceinline__ void store_real(void* data, DType dtype, int64_t index, Real value) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::f64:
      static_cast<double*>(data)[index] = value;
      return;
    case DType::bf16:
      static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(single);
      return;
    case DType::f16:
      static_cast<__half*>(data)[index] = __float2half_rn(single);
      return;
    case DType::e4m3:
      static_cast<uint8_t*>(data)[index] = e4m3_from_float(single);
      return;
    default:
      static_cast<float*>(data)[index] = single;
  }
}

template <class Real>
__device__ __forceinline__ Real round_real(Real value, DType dtype) {
  if (dtype == DType::bf16) {
    return __bfloat162float(__float2bfloat16_rn(static_cast<float>(value)));
  }
  return dtype == DType::f16
             ? static_cast<Real>(__half2float(__float2half_rn(static_cast<float>(value))))
             : value;
}

template <class Real>
__device__ __forceinline__ Real load_number(const ReferenceNumbers& numbers, int32_t sequence,
                                            int32_t head, Real otherwise) {
  return numbers.data == nullptr
             ? otherwise
             : load_real<Real>(numbers.data, numbers.dtype,
                               sequence * numbers.sequence + head * numbers.head);
}

template <class Real>
__device__ __forceinline__ Real no_score() {
  return -std::numeric_limits<Real>::infinity();
}

/// One (sequence, query head).
template <class Real>
struct ReferencePairs {
  const ReferenceParams& params;
  SequenceRows rows;
  HeadGeometry geometry;
  int32_t sequence, head, key_head;
  Real slope, q_scale, k_scale, v_scale;

  __device__ ReferencePairs(const ReferenceParams& of, int32_t at, int32_t index)
      : params(of),
        rows(resolve_rows(of.source, at)),
        geometry(resolve_head(of.source, rows, at, index)),
        sequence(at),
        head(index),
        key_head(index / (of.source.heads / of.source.key_heads)),
        slope(load_number<Real>(of.slopes, at, index, 0)),
        q_scale(load_number<Real>(of.q_scale, at, index, 1)),
        k_scale(load_number<Real>(of.k_scale, at, key_head, 1)),
        v_scale(load_number<Real>(of.v_scale, at, key_head, 1)) {}

  __device__ int64_t query_at(const ReferenceRows& view, int64_t i) const {
    return view.at(sequence, head, rows.query_first + i);
  }

  /// Key j of k, v or their gradients, through pages if there are any.
  __device__ int64_t key_at(const ReferenceRows& view, int64_t j) const {
    if (params.page_table == nullptr) {
      return view.at(sequence, key_head, rows.key_first + j);
    }
    const int32_t page =
        params.page_table[sequence * params.page_table_stride + j / params.page_size];
    return view.at(min(max(page, 0), params.page_count - 1), key_head, j % params.page_size);
  }

  /// Row of out, lse, entropy and their gradients; -1 for none.
  __device__ int64_t output_row(int64_t i) const {
    const int32_t* index = params.source.output_index.at(sequence, head);
    if (index == nullptr) {
      return i;
    }
    const int32_t row = index[rows.query_first + i];
    return row < rows.query_rows ? row : -1;
  }

  __device__ bool visible(int32_t i, int32_t j) const {
    return pair_exists(geometry, params.partial_count, i, j);
  }

  /// Visible, and not in a tile that the gate skips.
  __device__ bool exists(int32_t i, int32_t j) const {
    if (!visible(i, j)) {
      return false;
    }
    const ReferenceGate& gate = params.gate;
    if (gate.bitmap == nullptr) {
      return true;
    }
    const auto tile = static_cast<int32_t>(j / gate.keys);
    return (bitmap(static_cast<int32_t>(i / gate.rows))[tile / 32] >> tile % 32 & 1) != 0;
  }

  __device__ uint32_t* bitmap(int32_t block) const {
    const ReferenceGate& gate = params.gate;
    return gate.bitmap +
           ((int64_t{sequence} * params.source.heads + head) * gate.row_blocks + block) *
               gate.words;
  }

  /// Place of query i in lists of the workspace.
  __device__ int64_t list_at(int64_t i) const {
    return (int64_t{sequence} * params.source.heads + head) * params.source.max_query + i;
  }

  /// Final score from sum q k (scales of 8-bit storage included); `change` becomes
  /// d(score) / d(scale q k).
  __device__ Real score(Real product, int64_t i, int64_t j, Real& change) const {
    Real x = static_cast<Real>(params.scale) * product;
    change = 1;
    if (params.softcap > 0) {
      const auto cap = static_cast<Real>(params.softcap);
      const Real t = tanh(x / cap);
      x = cap * t;
      change = 1 - t * t;
    }
    const int64_t distance = geometry.inner.position(j) - geometry.outer.position(i);
    x -= slope * static_cast<Real>(distance < 0 ? -distance : distance);
    if (params.bias.data != nullptr) {
      x += load_real<Real>(params.bias.data, params.bias.dtype,
                           params.bias.at(sequence, head, i) + j);
    }
    return x;
  }

  /// 0 or 1 / (1 - probability).
  __device__ Real dropout(int64_t i, int64_t j) const {
    if (params.drop == 0) {
      return 1;
    }
    const uint32_t bits = attention_dropout_bits(
        *params.seed, params.seed_offset != nullptr ? *params.seed_offset : 0,
        static_cast<uint32_t>(sequence), static_cast<uint32_t>(head),
        static_cast<uint32_t>(geometry.outer.position(i)),
        static_cast<uint32_t>(geometry.inner.position(j)));
    return bits < params.drop_below ? 0 : static_cast<Real>(1 / (1 - params.drop));
  }
};

template <class Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

/// Sum of `a` (shared memory) times a row of a tensor, the same in all lanes.
template <class Real>
__device__ __forceinline__ Real warp_dot(const Real* a, const ReferenceRows& rows, int64_t at,
                                         int32_t width) {
  Real sum = 0;
  for (auto d = static_cast<int32_t>(threadIdx.x % 32); d < width; d += 32) {
    sum += a[d] * load_real<Real>(rows.data, rows.dtype, at + d);
  }
  return warp_sum(sum);
}

/// Copies a row to shared memory.
template <class Real>
__device__ __forceinline__ void load_row(Real* to, const ReferenceRows& rows, int64_t at,
                                         int32_t width, Real scale) {
  for (auto d = static_cast<int32_t>(threadIdx.x); d < width;
       d += static_cast<int32_t>(blockDim.x)) {
    to[d] = scale * load_real<Real>(rows.data, rows.dtype, at + d);
  }
}

inline constexpr int kReferenceThreads = 128;  // and keys (or queries) at a time
// 128 registers a thread: left to itself the compiler takes 96 and spills around exp and tanh.
inline constexpr int kReferenceResident = 4;

/// Sum or maximum over the block, in a fixed order, the same in all threads; `parts` is shared
/// memory of one number a warp.
template <class Real>
__device__ Real block_sum(Real value, Real* parts) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  Real sum = 0;
  for (int i = 0; i < kReferenceThreads / 32; ++i) {
    sum += parts[i];
  }
  return sum;
}

template <class Real>
__device__ Real block_maximum(Real value, Real* parts) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = max(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  for (int i = 0; i < kReferenceThreads / 32; ++i) {
    value = max(value, parts[i]);
  }
  return value;
}

}  // namespace flashloom::portable
