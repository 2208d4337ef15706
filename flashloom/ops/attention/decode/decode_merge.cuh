#pragma once

#include "flashloom/ops/attention/decode/decode_attend.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

// Joining, always in the order of the keys' owners: teams of a block, then blocks of a unit that
// cross the line's cuts (decode_join.cuh joins parts).

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

/// Four columns of a row of a slot; its statistics beside column 0.
template <class Shape>
__device__ __forceinline__ void write_slot(const Params& params, int32_t slot, int32_t row,
                                           int32_t column, const JoinedRow& joined) {
  float* target = params.slots + int64_t{slot} * params.slot_floats;
  *reinterpret_cast<float4*>(target + row * Shape::kDim + column) = joined.value;
  if (column == 0) {
    reinterpret_cast<RowStats*>(target + params.slot_rows * Shape::kDim)[row] = joined.total;
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

/// Joins `count` slots of a unit, those of blocks first, first + step, ...: into the result, or
/// into the first of the slots. A thread has four columns of a row at a time; slots come to shared
/// memory as many as it holds, so that their latency counts once.
template <class Shape>
__device__ __forceinline__ void join_slots(const Params& params, const Line& line, const Unit& unit,
                                           const Work& work, int32_t first, int32_t count,
                                           int32_t step, bool final, float* memory) {
  constexpr int32_t kColumns = Shape::kDim / 4;  // threads a row
  constexpr int32_t kRowsOnce = Shape::kThreads / kColumns;
  constexpr int32_t kRowFloats = Shape::kDim + 4;  // sums and statistics, in 16-byte pieces
  constexpr int32_t kFloats = Shape::kBufferBytes / 4;
  static_assert(kRowsOnce >= 1 && kFloats / kRowFloats / kRowsOnce >= 8);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t first_slot = line.slot(first, unit.start);
  const int32_t column = thread % kColumns * 4;
  const bool works = thread < kRowsOnce * kColumns;
  // All parts of as many rows as fit, or as many parts as fit of the rows that threads have at
  // once.
  const int32_t fit = kFloats / kRowFloats;
  const int32_t rows_once = max(fit / count, kRowsOnce);
  const int32_t parts_once = min(count, fit / rows_once);
  JoinedRow joined;
#pragma unroll 1
  for (int32_t base = 0; base < work.row_count; base += rows_once) {
    const int32_t rows = min(rows_once, work.row_count - base);
#pragma unroll 1
    for (int32_t begin = 0; begin < count; begin += parts_once) {
      const int32_t parts = min(parts_once, count - begin);
      __syncthreads();
#pragma unroll 1
      for (int32_t part = thread / 32; part < parts; part += Shape::kThreads / 32) {
        // Only the first block can have begun the unit behind another one.
        const int32_t slot = begin + part == 0 ? first_slot : 2 * (first + (begin + part) * step);
        const float* source = params.slots + int64_t{slot} * params.slot_floats;
        const float* stats = source + params.slot_rows * Shape::kDim + base * 2;
        float* target = memory + part * rows * kRowFloats;
        source += base * Shape::kDim;
#pragma unroll 2
        for (int32_t at = thread % 32 * 4; at < rows * Shape::kDim; at += 128) {
          cuda::cp_async_16(cuda::shared_address(target + at), source + at, true);
        }
#pragma unroll 1
        for (int32_t row = thread % 32; row < rows; row += 32) {
          reinterpret_cast<RowStats*>(target + rows * Shape::kDim)[row] =
              __ldcg(reinterpret_cast<const RowStats*>(stats) + row);
        }
      }
      cuda::cp_async_commit();
      cuda::cp_async_wait<0>();
      __syncthreads();
#pragma unroll 1
      for (int32_t row = thread / kColumns; works && row < rows; row += kRowsOnce) {
        if (begin == 0) {
          joined = {};
        }
        const float* own = memory + row * Shape::kDim + column;
        const float* stats = memory + rows * Shape::kDim + row * 2;
        float largest = kNothing;
#pragma unroll 4
        for (int32_t part = 0; part < parts; ++part) {
          largest = fmaxf(largest, stats[part * rows * kRowFloats]);
        }
        joined.raise(largest, params.unit);
#pragma unroll 4
        for (int32_t part = 0; part < parts; ++part) {
          const auto other = *reinterpret_cast<const RowStats*>(stats + part * rows * kRowFloats);
          joined.add(other, *reinterpret_cast<const float4*>(own + part * rows * kRowFloats),
                     params.unit);
        }
        if (begin + parts < count) {
          continue;
        }
        if (final) {
          write_result<Shape>(params, unit, work.rows, base + row, column, joined);
        } else {
          write_slot<Shape>(params, first_slot, base + row, column, joined);
        }
      }
    }
  }
}

/// What becomes of a stretch's piece of a unit: the result if it is the whole unit, else a slot of
/// the workspace, and the result if it is the last one.
template <class Shape>
__device__ __forceinline__ void finish_piece(const Params& params, const Line& line,
                                             const Unit& unit, const Work& work, bool whole,
                                             const RowStats* stats, float* sums) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t slot = line.slot(block, unit.start);
#pragma unroll 1
  for (auto item = static_cast<int32_t>(threadIdx.x); item < work.row_count * kColumns;
       item += Shape::kThreads) {
    const int32_t row = item / kColumns;
    const int32_t column = item % kColumns * 4;
    const JoinedRow joined = join_teams<Shape>(params, row, column, stats, sums);
    if (Shape::kTeams > 1 && whole) {
      write_result<Shape>(params, unit, work.rows, row, column, joined);
      continue;
    }
    write_slot<Shape>(params, slot, row, column, joined);
  }
  if (whole) {
    return;
  }
  __shared__ int is_last;
  const Sharing sharing = sharing_of<Shape>(line, unit, work);
  const bool one_group = sharing.group == sharing.count;
  const int32_t begin = sharing.group_first(block);
  // Twice at most: the parts of a group, then the groups.
#pragma unroll 1
  for (int level = 0; level < 2; ++level) {
    const int32_t count = level == 0 ? sharing.group_count(begin) : sharing.groups();
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long* counter = level == 0 ? group_counter(params, line.slot(begin, unit.start))
                                               : unit_counter(params, unit);
      is_last = arrive_last(counter, count) ? 1 : 0;
      __threadfence();
    }
    __syncthreads();
    if (is_last == 0) {
      return;
    }
    const bool final = level == 1 || one_group;
    join_slots<Shape>(params, line, unit, work, level == 0 ? begin : sharing.first, count,
                      level == 0 ? 1 : sharing.group, final, sums);
    if (final) {
      return;
    }
  }
}

}  // namespace flashloom::decode
