#pragma once

#include "flashloom/ops/attention/decode/decode_tile.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

// Joining, always in the order of the keys' owners: teams of a block, then blocks of a unit.

/// Largest score and sum of a row.
using RowStats = float2;

/// Rows of a unit that are stored.
template <class Shape>
__device__ __forceinline__ int32_t stored_rows(const Params& params, const Unit& unit,
                                               const SequenceRows& rows) {
  return min(Shape::kRows, rows.query_rows * params.group - unit.row_tile * Shape::kRows);
}

/// The warps' sums into shared memory, relative to the largest score among the teams: f32
/// (teams, rows, kSumPitch). Ends with a barrier.
template <class Shape>
__device__ __forceinline__ void gather_teams(RowState<Shape>& state, int32_t row_count,
                                             RowStats* stats, float* sums) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t team = threadIdx.x / Shape::kTeamThreads;
  const uint32_t row_warp = threadIdx.x / 32 % Shape::kRowWarps;
  const uint32_t first_row = row_warp * 16 + lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 1);
    state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 2);
    if (lane % 4 == 0) {
      stats[team * Shape::kRows + first_row + r * 8] = {state.largest[r], state.sum[r]};
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint32_t row = first_row + r * 8;
    if (static_cast<int32_t>(row) >= row_count) {
      continue;
    }
    float largest = kNothing;
#pragma unroll
    for (int other = 0; other < Shape::kTeams; ++other) {
      largest = fmaxf(largest, stats[other * Shape::kRows + row].x);
    }
    const float factor = cuda::exp2_fast(state.largest[r] - largest);
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

/// Four columns of a row's result from its sums, with the sink; lse beside column 0.
template <class Shape>
__device__ __forceinline__ void write_result(const Params& params, const Unit& unit,
                                             const SequenceRows& rows, int32_t row, int32_t column,
                                             float4 value, RowStats stats) {
  const int32_t index = unit.row_tile * Shape::kRows + row;
  const int32_t query = index / params.group;
  const int32_t head = unit.key_head * params.group + index % params.group;
  const bool exists = query < rows.queries;
  float largest = stats.x;
  float sum = exists ? stats.y : 0;
  float factor = 1;
  if (exists && params.sinks != nullptr) {
    const float sink = params.sinks[head * params.sinks_head] * 1.4426950408889634f;
    largest = fmaxf(largest, sink);
    factor = cuda::exp2_fast(stats.x - largest);
    sum = sum * factor + cuda::exp2_fast(sink - largest);
  }
  const float scale = sum > 0 ? factor / sum : 0;
  const int64_t out_row = int64_t{rows.query_first} + query;
  if (column < params.value_dim) {
    if (sum > 0 || sum != sum) {
      value = {value.x * scale, value.y * scale, value.z * scale, value.w * scale};
    } else {
      value = {0, 0, 0, 0};
    }
    store_4<typename Shape::Type>(params.out, params.out_is_f32 != 0,
                                  unit.sequence * params.out_sequence + head * params.out_head +
                                      out_row * params.out_row + column,
                                  value);
  }
  if (column == 0 && params.lse != nullptr) {
    params.lse[unit.sequence * params.lse_sequence + head * params.lse_head +
               out_row * params.lse_row] = sum > 0 ? (largest + log2f(sum)) * 0.6931471805599453f
                                           : sum != sum ? sum
                                                        : -INFINITY;
  }
}

/// The result of a unit from the slots of its blocks. Loads come in batches that do not wait for
/// one another: this runs when the rest of the GPU is done.
template <class Shape>
__device__ __forceinline__ void merge_pieces(const Params& params, const Line& line,
                                             const Unit& unit, const SequenceRows& rows,
                                             const Line::Owners& owners, int32_t row_count,
                                             float* memory) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  constexpr int32_t kBatch = 8;
  const int32_t pieces = owners.count;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t first_slot = line.slot(owners.first, unit.start);
  // Only the first block can have begun the unit behind another one.
  const auto slot_row = [&](int32_t piece, int32_t row) {
    const int32_t slot = piece == 0 ? first_slot : 2 * (owners.first + piece);
    return int64_t{slot} * params.slot_rows + row;
  };
  const auto load_batch = [&](float4(&parts)[kBatch], int32_t item, int32_t first) {
#pragma unroll
    for (int32_t n = 0; n < kBatch; ++n) {
      const int64_t place = slot_row(min(first + n, pieces - 1), item / kColumns);
      parts[n] = __ldcg(reinterpret_cast<const float4*>(params.partial + place * Shape::kDim +
                                                        item % kColumns * 4));
    }
  };
  const auto* all_stats = reinterpret_cast<const RowStats*>(params.partial_stats);
  // (rows at once, pieces), then (rows at once); the largest score becomes the weight.
  const int32_t at_once = min(Shape::kRows, Shape::kBufferBytes / 8 / (pieces + 1));
  auto* stats = reinterpret_cast<RowStats*>(memory);
  RowStats* totals = stats + at_once * pieces;
  for (int32_t base = 0; base < row_count; base += at_once) {
    const int32_t count = min(at_once, row_count - base);
    const int32_t end = (base + count) * kColumns;
    float4 parts[kBatch];
    load_batch(parts, min(base * kColumns + thread, end - 1), 0);
    for (int32_t n = thread; n < count * pieces; n += Shape::kThreads) {
      stats[n] = __ldcg(&all_stats[slot_row(n % pieces, base + n / pieces)]);
    }
    __syncthreads();
    for (int32_t row = thread / 32; row < count; row += Shape::kThreads / 32) {
      RowStats* own = stats + row * pieces;
      RowStats total = {kNothing, 0};
      for (int32_t piece = thread % 32; piece < pieces; piece += 32) {
        total.x = fmaxf(total.x, own[piece].x);
      }
      for (int step = 16; step > 0; step /= 2) {
        total.x = fmaxf(total.x, __shfl_xor_sync(0xffffffffu, total.x, step));
      }
      for (int32_t piece = thread % 32; piece < pieces; piece += 32) {
        own[piece].x = cuda::exp2_fast(own[piece].x - total.x);
        total.y += own[piece].x * own[piece].y;
      }
      for (int step = 16; step > 0; step /= 2) {
        total.y += __shfl_xor_sync(0xffffffffu, total.y, step);
      }
      if (thread % 32 == 0) {
        totals[row] = total;
      }
    }
    __syncthreads();
    for (int32_t item = base * kColumns + thread; item < end; item += Shape::kThreads) {
      const int32_t row = item / kColumns;
      float4 value = {0, 0, 0, 0};
      for (int32_t first = 0; first < pieces; first += kBatch) {
        if (first > 0 || item != base * kColumns + thread) {
          load_batch(parts, item, first);
        }
#pragma unroll
        for (int32_t n = 0; n < kBatch; ++n) {
          if (first + n < pieces) {
            const float weight = stats[(row - base) * pieces + first + n].x;
            value.x += weight * parts[n].x;
            value.y += weight * parts[n].y;
            value.z += weight * parts[n].z;
            value.w += weight * parts[n].w;
          }
        }
      }
      write_result<Shape>(params, unit, rows, row, item % kColumns * 4, value, totals[row - base]);
    }
    __syncthreads();
  }
}

/// What becomes of a block's part of a unit: the result if it is the whole unit, else a slot of the
/// workspace, and the result if it is the last one.
template <class Shape>
__device__ __forceinline__ void finish_piece(const Params& params, const Line& line,
                                             const Unit& unit, const SequenceRows& rows,
                                             const Line::Owners& owners, int32_t row_count,
                                             const RowStats* stats, float* sums) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  const int32_t slot = line.slot(static_cast<int32_t>(blockIdx.x), unit.start);
  for (auto item = static_cast<int32_t>(threadIdx.x); item < row_count * kColumns;
       item += Shape::kThreads) {
    const int32_t row = item / kColumns;
    const int32_t column = item % kColumns * 4;
    RowStats total = {kNothing, 0};
#pragma unroll
    for (int team = 0; team < Shape::kTeams; ++team) {
      total.x = fmaxf(total.x, stats[team * Shape::kRows + row].x);
    }
    float4 value = {0, 0, 0, 0};
#pragma unroll
    for (int team = 0; team < Shape::kTeams; ++team) {
      const RowStats own = stats[team * Shape::kRows + row];
      total.y += own.y * cuda::exp2_fast(own.x - total.x);
      const float4 part = *reinterpret_cast<const float4*>(
          sums + (team * Shape::kRows + row) * Shape::kSumPitch + column);
      value.x += part.x;
      value.y += part.y;
      value.z += part.z;
      value.w += part.w;
    }
    if (owners.count == 1) {
      write_result<Shape>(params, unit, rows, row, column, value, total);
      continue;
    }
    const int64_t place = int64_t{slot} * params.slot_rows + row;
    *reinterpret_cast<float4*>(params.partial + place * Shape::kDim + column) = value;
    if (column == 0) {
      reinterpret_cast<RowStats*>(params.partial_stats)[place] = total;
    }
  }
  if (owners.count == 1) {
    return;
  }
  __shared__ int is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = arrive_last(counter_of(params, unit), owners.count) ? 1 : 0;
    __threadfence();
  }
  __syncthreads();
  if (is_last != 0) {
    merge_pieces<Shape>(params, line, unit, rows, owners, row_count, sums);
  }
}

}  // namespace flashloom::decode
