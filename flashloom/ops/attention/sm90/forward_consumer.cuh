#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/forward_shape.cuh"

// The arithmetic of a consumer warpgroup: its products, the online softmax, the store.

namespace flashloom::sm90 {

/// One consumer warpgroup's tile of queries.
template <class Shape>
struct ForwardConsumer {
  using T = typename Shape::T;
  using ScoreProduct = cuda::Wgmma<T, Shape::kKeys>;
  using OutProduct = cuda::Wgmma<T, Shape::kDim>;
  static constexpr int kScores = Shape::kKeys / 2;
  static constexpr int kEighths = Shape::kKeys / 8;  // groups of eight keys

  float out[Shape::kDim / 2];
  float scores[kScores];
  uint32_t weights[kScores / 2];  // probabilities as the next product's A operand
  float maximum[2];               // what the exponents are relative to, in units of raw scores
  float limit[2];                 // scores above it move the maximum
  float sum[2];

  __device__ __forceinline__ void start_rows() {
    maximum[0] = maximum[1] = -INFINITY;
    limit[0] = limit[1] = -0.0f;  // the least of all integers: any score reaches it
    sum[0] = sum[1] = 0;
  }

  __device__ __forceinline__ void issue_scores(uint32_t q, uint32_t k) {
    using namespace cuda;
    const uint64_t a = k_major_descriptor(q);
    const uint64_t b = k_major_descriptor(k);
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      ScoreProduct::template from_shared<Major::kReduced, Major::kReduced>(
          scores, moved_descriptor(a, k_major_step(step, Shape::kRows)),
          moved_descriptor(b, k_major_step(step, Shape::kKeys)), step != 0);
    }
    wgmma_commit();
  }

  /// With `fresh` the sum starts at 0, whatever `out` holds.
  __device__ __forceinline__ void issue_out(uint32_t v, bool fresh) {
    using namespace cuda;
    const uint64_t b = mn_major_descriptor(v, Shape::kKeys);
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      OutProduct::template from_registers<Major::kOther>(
          out, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
          weights[4 * step + 3], moved_descriptor(b, mn_major_step(step)), step != 0 || !fresh);
    }
    wgmma_commit();
  }

  /// A bit for each of a row's scores in this thread: whether its key comes before the key `end`,
  /// counted from the thread's first.
  static __device__ __forceinline__ uint32_t keys_before(int32_t end) {
    // Of each eight keys the thread has the first two.
    const int32_t keys = max(end, 0);
    uint32_t behind;  // a shift of 32 and more leaves nothing
    asm("shl.b32 %0, %1, %2;"
        : "=r"(behind)
        : "r"(0xffffffffu), "r"(keys / 8 * 2 + min(keys % 8, 2)));
    return ~behind;
  }

  /// Hides pairs that the rows do not see. `row` is this thread's first query, `key` the tile's
  /// first key; `left` says whether keys may be hidden on the left.
  __device__ __forceinline__ void mask(const Sequence& sequence, int32_t row, int32_t key,
                                       uint32_t lane, bool left) {
    const int32_t first = key + 2 * static_cast<int32_t>(lane % 4);
    uint32_t seen[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      seen[half] = keys_before(sequence.key_end(row + 8 * half) - first);
      if (left) {
        seen[half] &= ~keys_before(sequence.key_begin(row + 8 * half) - first);
      }
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const uint32_t bit = 1u << (i / 4 * 2 + i % 2);
      scores[i] = (seen[i / 2 % 2] & bit) != 0 ? scores[i] : -INFINITY;
    }
  }

  __device__ __forceinline__ void hide() {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      scores[i] = -INFINITY;
    }
  }

  /// The bits of the greatest score of each row's part, as far as it is not negative: there, floats
  /// are ordered as integers are, and three are compared at a time.
  __device__ __forceinline__ void find_highest(int32_t (&highest)[2]) const {
    highest[0] = __float_as_int(scores[0]);
    highest[1] = __float_as_int(scores[2]);
#pragma unroll
    for (int j = 0; j < Shape::kKeys / 8; ++j) {
      highest[0] = __vimax3_s32(highest[0], __float_as_int(scores[4 * j]),
                                __float_as_int(scores[4 * j + 1]));
      highest[1] = __vimax3_s32(highest[1], __float_as_int(scores[4 * j + 2]),
                                __float_as_int(scores[4 * j + 3]));
    }
  }

  /// The same where all are negative: the least bits, without sign, are those of the greatest.
  __device__ __forceinline__ void find_lowest(uint32_t (&lowest)[2]) const {
    lowest[0] = __float_as_uint(scores[0]);
    lowest[1] = __float_as_uint(scores[2]);
#pragma unroll
    for (int j = 0; j < Shape::kKeys / 8; ++j) {
      lowest[0] = __vimin3_u32(lowest[0], __float_as_uint(scores[4 * j]),
                               __float_as_uint(scores[4 * j + 1]));
      lowest[1] = __vimin3_u32(lowest[1], __float_as_uint(scores[4 * j + 2]),
                               __float_as_uint(scores[4 * j + 3]));
    }
  }

  /// Moves the maximum where a score exceeds `limit` (see set_limits()): until then `out` needs no
  /// scaling. Returns whether `factor` must be applied to `out`.
  __device__ __forceinline__ bool settle_maximum(const ForwardParams& params, float (&factor)[2]) {
    const bool negative = limit[0] < 0 || limit[1] < 0;
    int32_t highest[2];
    find_highest(highest);
    const bool reaches =
        highest[0] >= __float_as_int(limit[0]) || highest[1] >= __float_as_int(limit[1]);
    // One vote where nothing moves, as in most steps.
    bool moves = __any_sync(0xffffffffu, reaches || negative) != 0;
    if (moves) {
      if (__any_sync(0xffffffffu, negative) != 0) {
        uint32_t lowest[2];
        find_lowest(lowest);
        bool exceeds = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          exceeds = exceeds || (limit[half] < 0 ? lowest[half] < __float_as_uint(limit[half])
                                                : highest[half] >= __float_as_int(limit[half]));
        }
        moves = __any_sync(0xffffffffu, exceeds) != 0;
      }
      if (moves) {
        move_maximum(params.scale_log2, highest, factor);
      }
    }
    return moves;
  }

  /// The exact maximum of a tile's first scores.
  __device__ __forceinline__ void first_maximum(const ForwardParams& params) {
    int32_t highest[2];
    float factor[2];
    maximum[0] = maximum[1] = -INFINITY;
    find_highest(highest);
    move_maximum(params.scale_log2, highest, factor);
    sum[0] = sum[1] = 0;
  }

  /// Scores of keys [8 kFirst, 8 kEnd) become exponentials and are summed.
  template <int kFirst, int kEnd>
  __device__ __forceinline__ void exponentials(const ForwardParams& params) {
    const float scale_log2 = params.scale_log2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = maximum[half] == -INFINITY ? 0 : maximum[half] * scale_log2;
#pragma unroll
      for (int j = kFirst; j < kEnd; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[4 * j + 2 * half + c];
          score = cuda::exp2_fast(fmaf(score, scale_log2, -shift));
        }
      }
    }
    float even[2] = {0, 0};
#pragma unroll
    for (int j = kFirst; j < kEnd; ++j) {
      sum[0] += scores[4 * j];
      sum[1] += scores[4 * j + 2];
      even[0] += scores[4 * j + 1];
      even[1] += scores[4 * j + 3];
    }
    sum[0] += even[0];
    sum[1] += even[1];
  }

  /// Moves `maximum` to the exact maximum of each row.
  __device__ __forceinline__ void move_maximum(float scale_log2, int32_t (&highest)[2],
                                               float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest[half] = max(highest[half], __shfl_xor_sync(0xffffffffu, highest[half], 1));
      highest[half] = max(highest[half], __shfl_xor_sync(0xffffffffu, highest[half], 2));
    }
    float row[2] = {__int_as_float(highest[0]), __int_as_float(highest[1])};
    if (__any_sync(0xffffffffu, highest[0] < 0 || highest[1] < 0) != 0) {
      uint32_t lowest[2];
      find_lowest(lowest);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        lowest[half] = min(lowest[half], __shfl_xor_sync(0xffffffffu, lowest[half], 1));
        lowest[half] = min(lowest[half], __shfl_xor_sync(0xffffffffu, lowest[half], 2));
        row[half] = highest[half] < 0 ? __uint_as_float(lowest[half]) : row[half];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[half] = fmaxf(row[half], maximum[half]);
      const float base = row[half] == -INFINITY ? 0 : row[half];
      factor[half] = cuda::exp2_fast((maximum[half] - base) * scale_log2);
      sum[half] *= factor[half];
      maximum[half] = row[half];
    }
  }

  /// After the maximum has moved: how far scores may exceed it before it moves again. Half of the
  /// row's sum, so that a key that takes more than a third of its row has weight 1, which rounds to
  /// itself; at most 8 powers of two.
  __device__ __forceinline__ void set_limits(const ForwardParams& params) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float whole = sum[half];
      whole += __shfl_xor_sync(0xffffffffu, whole, 1);
      whole += __shfl_xor_sync(0xffffffffu, whole, 2);
      const float room = fminf(fmaxf(__log2f(whole) - 1, 0), 8);
      limit[half] = fmaf(room, params.inverse_scale, maximum[half]);
    }
  }

  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
#pragma unroll
    for (int j = 0; j < Shape::kDim / 8; ++j) {
      out[4 * j] *= factor[0];
      out[4 * j + 1] *= factor[0];
      out[4 * j + 2] *= factor[1];
      out[4 * j + 3] *= factor[1];
    }
  }

  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      weights[i] = cuda::pack2<T>(scores[2 * i], scores[2 * i + 1]);
    }
  }

  /// The end of the rows `row` and `row` + 8: writes their lse and leaves what their `out` must be
  /// multiplied with in `inverse`: 0 for rows that do not exist or see nothing.
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
      if constexpr (Shape::kGeneral) {
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
  __device__ __forceinline__ void clear_empty(const float (&inverse)[2]) {
    if (__any_sync(0xffffffffu, inverse[0] == 0 || inverse[1] == 0) != 0) {
#pragma unroll
      for (int i = 0; i < Shape::kDim / 2; ++i) {
        out[i] = inverse[i / 2 % 2] == 0 ? 0 : out[i];
      }
    }
  }

  /// Eight columns of `out`, from 8 * group on, of row `row` + 8 * half.
  __device__ __forceinline__ uint32_t packed_out(int group, int half) const {
    return cuda::pack2<T>(out[4 * group + 2 * half], out[4 * group + 2 * half + 1]);
  }

  /// Copies columns [64 first, 64 (first + count)) of this warp's 16 rows to shared memory, in the
  /// layout of the copy engine: `place` is row 0 of the warp in the first of panels of `panel`
  /// bytes.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void stage(uint32_t place, uint32_t panel, uint32_t lane) {
    // stmatrix: lane l names row l % 8 of matrix l / 8; matrices are 8 rows x 8 columns, of rows
    // 0-7 and 8-15, then of the next 8 columns.
    const uint32_t row = lane % 8 + lane / 8 % 2 * 8;
    const uint32_t chunk = lane / 16;
    place += row * cuda::kPanelRowBytes;
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const int group = 8 * (kFirst + p) + i;
        if (group < Shape::kDim / 8) {
          const uint32_t swizzled = (i + chunk) ^ lane % 8;
          cuda::stmatrix_x4(place + p * panel + 16 * swizzled, packed_out(group, 0),
                            packed_out(group, 1), packed_out(group + 1, 0),
                            packed_out(group + 1, 1));
        }
      }
    }
  }
};

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
