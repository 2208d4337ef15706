#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/forward_shape.cuh"

// The end of rows of queries: their lse, what their sums are divided by, and their way to memory.
// `out` is a thread's part of the sums of rows r and r + 8 of its warp's 16: of each eight columns
// two neighbours of either row.

namespace flashloom::sm90 {

/// Multiplies a thread's part of the sums of two rows.
template <int kCount>
__device__ __forceinline__ void rescale_rows(float (&out)[kCount], const float (&factor)[2]) {
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    out[4 * j] *= factor[0];
    out[4 * j + 1] *= factor[0];
    out[4 * j + 2] *= factor[1];
    out[4 * j + 3] *= factor[1];
  }
}

/// The end of the rows `row` and `row` + 8: writes their lse and leaves what their `out` must be
/// multiplied with in `inverse`: 0 for rows that do not exist or see nothing.
template <bool kDrops>
__device__ __forceinline__ void finish_rows(const ForwardParams& params, const ForwardWork& work,
                                            int32_t row, uint32_t lane,
                                            const float (&row_maximum)[2],
                                            const float (&row_sum)[2], float (&inverse)[2]) {
  const float natural = params.sinks != nullptr ? params.sinks[work.tile.head] : -INFINITY;
  // Both rows' sums side by side: the next tile's exponentials wait for this.
  float sums[2] = {row_sum[0], row_sum[1]};
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
#pragma unroll
    for (float& part : sums) {
      part += __shfl_xor_sync(0xffffffffu, part, step);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sums[half];
    const int32_t query = row + 8 * half;
    const bool exists = query < work.sequence.query_length;
    float shift = row_maximum[half] * params.scale_log2;  // -inf for a row that saw nothing
    // The lse is base * unit and the logarithm of a sum relative to it, in one rounding; `lost`
    // is what the shift's rounding took from that base.
    float base = row_maximum[half];
    float unit = params.scale_natural;
    float lost = fmaf(base, params.scale_log2, -shift);
    // Without a branch, so that all of it runs beside exponentials.
    const float sink = natural * 1.4426950408889634f;
    const float joint = fmaxf(shift, sink);
    const float level = joint == -INFINITY ? 0 : joint;
    float weight = cuda::exp2_fast(shift - level);
    total = total * weight + cuda::exp2_fast(sink - level);
    if (sink > shift) {
      base = natural;
      unit = 1;
      lost = fmaf(natural, 1.4426950408889634f, -sink);
    }
    if constexpr (kDrops) {
      weight *= params.rule.seed != nullptr ? params.rule.kept : 1;
    }
    const bool empty = !exists || total <= 0;
    inverse[half] = empty ? 0 : __fdividef(weight, total);
    if (params.lse != nullptr && lane % 4 == 0 && query < work.sequence.query_rows) {
      params.lse[work.lse + query * params.lse_row] =
          empty ? -INFINITY : fmaf(base, unit, (__log2f(total) - lost) * 0.6931471805599453f);
    }
  }
}

/// Rows that count as 0, by what finish_rows() left, become 0 even where what they do not see is
/// NaN.
template <int kCount>
__device__ __forceinline__ void clear_empty(float (&out)[kCount], const float (&inverse)[2]) {
  if (__any_sync(0xffffffffu, inverse[0] == 0 || inverse[1] == 0) != 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      out[i] = inverse[i / 2 % 2] == 0 ? 0 : out[i];
    }
  }
}

/// Copies columns [64 kFirst, 64 (kFirst + kPanels)) of this warp's 16 rows to shared memory, in
/// the layout of the copy engine: `place` is row 0 of the warp in the first of panels of `panel`
/// bytes.
template <class T, int kFirst, int kPanels, int kCount>
__device__ __forceinline__ void stage_rows(const float (&out)[kCount], uint32_t place,
                                           uint32_t panel, uint32_t lane) {
  // Columns 8 group to 8 group + 7 of the thread's row r + 8 half.
  const auto packed = [&](int group, int half) {
    return cuda::pack2<T>(out[4 * group + 2 * half], out[4 * group + 2 * half + 1]);
  };
  // stmatrix: lane l names row l % 8 of matrix l / 8; matrices are 8 rows x 8 columns, of rows
  // 0-7 and 8-15, then of the next 8 columns.
  const uint32_t row = lane % 8 + lane / 8 % 2 * 8;
  const uint32_t chunk = lane / 16;
  place += row * cuda::kPanelRowBytes;
#pragma unroll
  for (int p = 0; p < kPanels; ++p) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const int group = 8 * (kFirst + p) + i;
      if (group < kCount / 4) {
        const uint32_t swizzled = (i + chunk) ^ lane % 8;
        cuda::stmatrix_x4(place + p * panel + 16 * swizzled, packed(group, 0), packed(group, 1),
                          packed(group + 1, 0), packed(group + 1, 1));
      }
    }
  }
}

/// Row `row` of the result's tensor, of one head and sequence.
template <class T>
__device__ __forceinline__ T* out_row(const ForwardParams& params, const ForwardWork& work,
                                      int32_t row) {
  const int64_t batch = params.problem.cu_query != nullptr ? 0 : work.tile.batch;
  return static_cast<T*>(params.out) + batch * params.out_batch + work.tile.head * params.out_head +
         (work.sequence.query_first + row) * params.out_row;
}

/// A warp writes what it staged of rows [first, first + 16) that exist; `column` is the first
/// panel's. The warp must converge before the place is given back.
template <class T>
__device__ __forceinline__ void copy_rows(const ForwardParams& params, const ForwardWork& work,
                                          int32_t first, int32_t column, int32_t panels,
                                          uint32_t place, uint32_t panel, uint32_t lane) {
  const int32_t rows = min(16, work.sequence.query_rows - first);
#pragma unroll 1
  for (auto i = static_cast<int32_t>(lane); i < rows * panels * 8; i += 32) {
    const int32_t row = i / (panels * 8);
    const int32_t chunk = i % (panels * 8);
    const int32_t own = column + 8 * chunk;
    const uint32_t source = place + chunk / 8 * panel + row * cuda::kPanelRowBytes +
                            16 * static_cast<uint32_t>(chunk % 8 ^ row % 8);
    if (own < params.value_columns) {
      *reinterpret_cast<uint4*>(out_row<T>(params, work, first + row) + own) =
          cuda::load_shared_16(source);
    }
  }
}

/// A warp writes rows [first, first + 16) that are padding.
template <class T>
__device__ __forceinline__ void clear_results(const ForwardParams& params, const ForwardWork& work,
                                              int32_t first, uint32_t lane) {
  const int32_t rows = min(16, work.sequence.query_rows - first);
  const int32_t chunks = params.value_columns / 8;
#pragma unroll 1
  for (auto i = static_cast<int32_t>(lane); i < rows * chunks; i += 32) {
    *reinterpret_cast<uint4*>(out_row<T>(params, work, first + i / chunks) + i % chunks * 8) =
        make_uint4(0, 0, 0, 0);
  }
  if (params.lse != nullptr && static_cast<int32_t>(lane) < rows) {
    params.lse[work.lse + (first + lane) * params.lse_row] = -INFINITY;
  }
}

}  // namespace flashloom::sm90
