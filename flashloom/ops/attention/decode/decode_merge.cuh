#pragma once

#include "flashloom/ops/attention/decode/decode_state.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

// Joining the teams of a block, in the order of their numbers, and writing results
// (decode_join.cuh joins blocks).

/// Largest score and sum of a row.
using RowStats = float2;

/// The warps' sums into shared memory, relative to the largest score among the teams: f32
/// (teams, rows, kSumPitch). Ends with a barrier.
template <class Shape>
__device__ __forceinline__ void gather_teams(const Params& params, RowState<Shape>& state,
                                             int32_t row_count, RowStats* stats, float* sums) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t team = threadIdx.x / Shape::kTeamThreads;
  const uint32_t row_warp = threadIdx.x / 32 % Shape::kRowWarps;
  const uint32_t first_row = row_warp * 16 + lane / 4;
  state.add_lanes();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (lane % 4 == 0 && team < Shape::kTeams) {
      stats[team * Shape::kRows + first_row + r * 8] = {state.largest[r], state.sum[r]};
    }
  }
  if constexpr (Shape::kTeams > 1) {
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint32_t row = first_row + r * 8;
    if (static_cast<int32_t>(row) >= row_count || team >= Shape::kTeams) {
      continue;  // a producer has no sums
    }
    float factor = 1;
    if constexpr (Shape::kTeams > 1) {
      float largest = kNothing;
#pragma unroll
      for (int other = 0; other < Shape::kTeams; ++other) {
        largest = fmaxf(largest, stats[other * Shape::kRows + row].x);
      }
      factor = cuda::exp2_fast((state.largest[r] - largest) * params.unit);
    }
    float* target = sums + (team * Shape::kRows + row) * Shape::kSumPitch + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < Shape::kDim / 8; ++c) {
      *reinterpret_cast<float2*>(target + c * 8) = {state.out[c][2 * r] * factor,
                                                    state.out[c][2 * r + 1] * factor};
    }
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ void store_4(void* target, bool as_f32, int64_t index, float4 value) {
  if (as_f32) {
    float* out = static_cast<float*>(target) + index;
    if (reinterpret_cast<uintptr_t>(out) % 16 == 0) {
      *reinterpret_cast<float4*>(out) = value;
    } else {
      out[0] = value.x;
      out[1] = value.y;
      out[2] = value.z;
      out[3] = value.w;
    }
    return;
  }
  const uint32_t low = cuda::pack2<T>(value.x, value.y);
  const uint32_t high = cuda::pack2<T>(value.z, value.w);
  uint16_t* out = static_cast<uint16_t*>(target) + index;
  if (reinterpret_cast<uintptr_t>(out) % 8 == 0) {
    *reinterpret_cast<uint2*>(out) = {low, high};
  } else {
    out[0] = static_cast<uint16_t>(low);
    out[1] = static_cast<uint16_t>(low >> 16);
    out[2] = static_cast<uint16_t>(high);
    out[3] = static_cast<uint16_t>(high >> 16);
  }
}

template <class T>
__device__ __forceinline__ void store_2(void* target, bool as_f32, int64_t index, float low,
                                        float high) {
  if (as_f32) {
    float* out = static_cast<float*>(target) + index;
    out[0] = low;
    out[1] = high;
    return;
  }
  const uint32_t packed = cuda::pack2<T>(low, high);
  uint16_t* out = static_cast<uint16_t*>(target) + index;
  if (reinterpret_cast<uintptr_t>(out) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(out) = packed;
  } else {
    out[0] = static_cast<uint16_t>(packed);
    out[1] = static_cast<uint16_t>(packed >> 16);
  }
}

/// Four columns of a row, of as many parts as have been added.
struct JoinedRow {
  RowStats total = {kNothing, 0};
  float4 value = {0, 0, 0, 0};

  /// Before parts with a score of `largest` are added.
  __device__ __forceinline__ void raise(float largest, float unit) {
    largest = fmaxf(total.x, largest);
    const float factor = cuda::exp2_fast((total.x - largest) * unit);
    total = {largest, total.y * factor};
    value = {value.x * factor, value.y * factor, value.z * factor, value.w * factor};
  }

  __device__ __forceinline__ void add(RowStats stats, float4 part, float unit) {
    const float weight = cuda::exp2_fast((stats.x - total.x) * unit);
    total.y += weight * stats.y;
    add(part, weight);
  }

  __device__ __forceinline__ void add(float4 part, float weight) {
    value.x += weight * part.x;
    value.y += weight * part.y;
    value.z += weight * part.z;
    value.w += weight * part.w;
  }
};

/// Where a row's result goes, and what its sums are multiplied with.
struct RowEnd {
  int64_t at;  // elements of out
  float scale;
  bool seen;  // else the result is 0, whatever the sums are
};

/// Ends a row with these statistics, with the sink; writes its lse if asked to.
template <class Shape>
__device__ __forceinline__ RowEnd end_row(const Params& params, const Unit& unit,
                                          const SequenceRows& rows, int32_t row, RowStats stats,
                                          bool writes_lse) {
  const int32_t index = unit.row_tile * Shape::kRows + row;
  const int32_t query = params.group.quotient(index);
  const int32_t head = (unit.key_head - query) * static_cast<int32_t>(params.group.divisor) + index;
  const bool exists = query < rows.queries;
  // The lse is base * natural and the logarithm of a sum relative to it, in one rounding; `lost` is
  // what the shift's rounding took from that base.
  float base = stats.x;
  float natural = params.unit_natural;
  const float shift = base * params.unit;
  float lost = fmaf(base, params.unit, -shift);
  float sum = exists ? stats.y : 0;
  float factor = 1;
  if (exists && params.sinks != nullptr) {
    const float given = params.sinks[head * params.sinks_head];
    const float sink = given * 1.4426950408889634f;
    const float joint = fmaxf(shift, sink);
    factor = cuda::exp2_fast(shift - joint);
    sum = sum * factor + cuda::exp2_fast(sink - joint);
    if (sink > shift) {
      base = given;
      natural = 1;
      lost = fmaf(given, 1.4426950408889634f, -sink);
    }
  }
  RowEnd end;
  end.seen = sum > 0 || sum != sum;  // NaN stays NaN
  end.scale = end.seen ? __fdividef(factor, sum) : 0;
  const int64_t out_row = int64_t{rows.query_first} + query;
  end.at = unit.sequence * params.out_sequence + head * params.out_head + out_row * params.out_row;
  if (writes_lse && params.lse != nullptr) {
    params.lse[unit.sequence * params.lse_sequence + head * params.lse_head +
               out_row * params.lse_row] =
        end.seen ? fmaf(base, natural, (log2f(sum) - lost) * 0.6931471805599453f) : -INFINITY;
  }
  return end;
}

/// Four columns of a row's result from its sums; lse beside column 0.
template <class Shape>
__device__ __forceinline__ void write_result(const Params& params, const Unit& unit,
                                             const SequenceRows& rows, int32_t row, int32_t column,
                                             const JoinedRow& joined) {
  const RowEnd end = end_row<Shape>(params, unit, rows, row, joined.total, column == 0);
  if (column < params.value_dim) {
    const float4 value = joined.value;
    store_4<typename Shape::Type>(params.out, params.out_is_f32 != 0, end.at + column,
                                  end.seen ? float4{value.x * end.scale, value.y * end.scale,
                                                    value.z * end.scale, value.w * end.scale}
                                           : float4{0, 0, 0, 0});
  }
}

/// Results of a unit that a block has to itself and one team attended, from its registers.
template <class Shape>
__device__ __forceinline__ void write_whole(const Params& params, const Unit& unit,
                                            const Work& work, RowState<Shape>& state) {
  const uint32_t lane = threadIdx.x % 32;
  state.add_lanes();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto row = static_cast<int32_t>(threadIdx.x / 32 * 16 + lane / 4 + r * 8);
    if (row >= work.row_count) {
      continue;
    }
    const RowEnd end = end_row<Shape>(params, unit, work.rows, row,
                                      {state.largest[r], state.sum[r]}, lane % 4 == 0);
#pragma unroll
    for (int c = 0; c < Shape::kDim / 8; ++c) {
      if (c * 8 < params.value_dim) {
        const float low = end.seen ? state.out[c][2 * r] * end.scale : 0;
        const float high = end.seen ? state.out[c][2 * r + 1] * end.scale : 0;
        store_2<typename Shape::Type>(params.out, params.out_is_f32 != 0,
                                      end.at + c * 8 + lane % 4 * 2, low, high);
      }
    }
  }
}

/// Four columns of a row of the block's sums, whose teams' are relative to the same maximum.
template <class Shape>
__device__ __forceinline__ JoinedRow join_teams(const Params& params, int32_t row, int32_t column,
                                                const RowStats* stats, const float* sums) {
  JoinedRow joined;
  if constexpr (Shape::kTeams == 1) {
    joined.total = stats[row];
    joined.value = *reinterpret_cast<const float4*>(sums + row * Shape::kSumPitch + column);
  } else {
#pragma unroll
    for (int team = 0; team < Shape::kTeams; ++team) {
      joined.total.x = fmaxf(joined.total.x, stats[team * Shape::kRows + row].x);
    }
#pragma unroll
    for (int team = 0; team < Shape::kTeams; ++team) {
      const RowStats own = stats[team * Shape::kRows + row];
      joined.total.y += own.y * cuda::exp2_fast((own.x - joined.total.x) * params.unit);
      joined.add(*reinterpret_cast<const float4*>(
                     sums + (team * Shape::kRows + row) * Shape::kSumPitch + column),
                 1);
    }
  }
  return joined;
}

}  // namespace flashloom::decode
