#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "flashloom/core/dtype.h"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/ops/attention/patterns/head_geometry.h"
#include "flashloom/ops/attention/portable/operand.cuh"

// Rows of tensors in the caller's memory: any float storage, any strides, through pages or an
// index.

namespace flashloom::portable {

/// A tensor (B, heads, S, width), or packed (heads, T, width) with a batch stride of 0; strides in
/// elements. Scalars of rows have a width of 1.
struct RowsView {
  void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
  DType dtype = DType::f32;
  bool chunks = false;  // rows are whole, aligned 16-byte chunks of the kernel's operand type
};

__device__ __forceinline__ int32_t element_bytes(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

__device__ __forceinline__ float load_float(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::f32) {
    return static_cast<const float*>(data)[index];
  }
  return dtype == DType::bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index])
                              : __half2float(static_cast<const __half*>(data)[index]);
}

__device__ __forceinline__ void store_float(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::f32) {
    static_cast<float*>(data)[index] = value;
  } else if (dtype == DType::bf16) {
    static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(data)[index] = __float2half_rn(value);
  }
}

/// Rows of one head of one sequence.
struct HeadRows {
  const char* data = nullptr;
  int64_t row_bytes = 0;
  DType dtype = DType::f32;
  bool chunks = false;
  const int32_t* pages = nullptr;  // page of each page_size rows
  int32_t page_size = 1;
  int32_t page_count = 0;
  int64_t page_bytes = 0;
  const int32_t* index = nullptr;  // row of the memory for each row; out of range: none
  int32_t index_limit = 0;
  const int32_t* positions = nullptr;  // rows at kPaddingPosition may hold anything

  /// Row i is at data + i * row_bytes, in whole chunks.
  __device__ __forceinline__ bool plain() const {
    return chunks && pages == nullptr && index == nullptr && positions == nullptr;
  }

  /// Null for a row that is not there.
  __device__ __forceinline__ const char* row(int32_t i) const {
    if (positions != nullptr && positions[i] == kPaddingPosition) {
      return nullptr;
    }
    if (index != nullptr) {
      const int32_t at = index[i];
      return at < 0 || at >= index_limit ? nullptr : data + at * row_bytes;
    }
    if (pages != nullptr) {
      int32_t page = pages[i / page_size];
      page = page < 0 ? 0 : page < page_count ? page : page_count - 1;
      return data + page * page_bytes + i % page_size * row_bytes;
    }
    return data + i * row_bytes;
  }
};

__device__ __forceinline__ HeadRows head_rows(const RowsView& view, int32_t sequence, int32_t head,
                                              int32_t first) {
  HeadRows rows;
  const int32_t bytes = element_bytes(view.dtype);
  rows.data = static_cast<const char*>(view.data) +
              (sequence * view.batch + head * view.head + first * view.row) * bytes;
  rows.row_bytes = view.row * bytes;
  rows.dtype = view.dtype;
  rows.chunks = view.chunks;
  return rows;
}

/// Element (sequence, head, row) of a tensor of f32 scalars.
__device__ __forceinline__ float* scalar_at(const RowsView& view, int32_t sequence, int32_t head,
                                            int64_t row) {
  return static_cast<float*>(view.data) + sequence * view.batch + head * view.head + row * view.row;
}

template <class T>
__device__ __forceinline__ T to_operand(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (__is_same(T, __half)) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

/// load_tile() for rows that are not plain. Not inlined: it is called from many places and seldom.
template <class T, int kRows, int kDim, int kThreads>
__device__ __noinline__ void load_tile_by_rows(uint32_t tile, const HeadRows& rows, int32_t first,
                                               int32_t count, int32_t width) {
  constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kElements = 16 / static_cast<int>(sizeof(T));
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kChunks; i += kThreads) {
    const int r = i / kChunks;
    const int c = i % kChunks;
    const uint32_t to = chunk_address<kRowBytes>(tile, r, c);
    const char* source = r < count ? rows.row(first + r) : nullptr;
    if (rows.chunks) {
      const bool exists = source != nullptr && c * kElements < width;
      cuda::cp_async_16(to, exists ? source + c * 16 : rows.data, exists);
      continue;
    }
    uint32_t words[4] = {};
    auto* values = reinterpret_cast<T*>(words);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int column = c * kElements + e;
      const bool exists = source != nullptr && column < width;
      values[e] = to_operand<T>(exists ? load_float(source, rows.dtype, column) : 0.0f);
    }
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
  }
}

/// Starts the copy of `count` rows from `first` on, zeros behind them and behind `width` columns,
/// into a tile of kRows x kDim. The caller commits the group; a barrier makes it visible.
template <class T, int kRows, int kDim, int kThreads>
__device__ __forceinline__ void load_tile(uint32_t tile, const HeadRows& rows, int32_t first,
                                          int32_t count, int32_t width) {
  constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  // A step of the loop below moves every thread down by whole rows, so that its chunk of the row
  // stays the same.
  constexpr int kRowStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kRowStep == 0 && kRowStep > 0);
  if (!rows.plain()) {
    load_tile_by_rows<T, kRows, kDim, kThreads>(tile, rows, first, count, width);
    return;
  }
  const int c = static_cast<int>(threadIdx.x) % kChunks;
  int r = static_cast<int>(threadIdx.x) / kChunks;
  const char* base = rows.data;
  const int64_t row_bytes = rows.row_bytes;
  const char* source = base + (int64_t{first} + r) * row_bytes + c * 16;
  count = c * kElements < width ? count : 0;
#pragma unroll 4
  for (int step = 0; step < kRows / kRowStep; ++step) {
    cuda::cp_async_16(chunk_address<kRowBytes>(tile, r, c), r < count ? source : base, r < count);
    r += kRowStep;
    source += kRowStep * row_bytes;
  }
}

/// Two neighbouring elements of a row, as far as they exist; `accumulate` adds to them.
__device__ __forceinline__ void store_pair(char* row, DType dtype, int32_t column, int32_t width,
                                           float a, float b, bool accumulate) {
  if (column >= width) {
    return;
  }
  if (accumulate) {
    a += load_float(row, dtype, column);
    b += column + 1 < width ? load_float(row, dtype, column + 1) : 0.0f;
  }
  char* at = row + int64_t{column} * element_bytes(dtype);
  const bool whole =
      column + 1 < width &&
      reinterpret_cast<uintptr_t>(at) % (2 * static_cast<uint32_t>(element_bytes(dtype))) == 0;
  if (whole && dtype == DType::f32) {
    *reinterpret_cast<float2*>(at) = make_float2(a, b);
  } else if (whole && dtype == DType::bf16) {
    *reinterpret_cast<uint32_t*>(at) = cuda::pack2<__nv_bfloat16>(a, b);
  } else if (whole) {
    *reinterpret_cast<uint32_t*>(at) = cuda::pack2<__half>(a, b);
  } else {
    store_float(row, dtype, column, a);
    if (column + 1 < width) {
      store_float(row, dtype, column + 1, b);
    }
  }
}

}  // namespace flashloom::portable
