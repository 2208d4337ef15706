#pragma once

#include "flashloom/ops/attention/decode/decode_merge.cuh"

namespace flashloom::decode {

// Joining the parts of a unit through slots of the workspace, one a part. Where all blocks of the
// launch run at once (params.meets: a cooperative launch), each waits for the others of its unit
// and joins its share of the rows and columns; else the last to arrive joins them all. Always in
// an order that only the numbers of parts and threads fix.

/// A block's share of a unit's results: items [first, end), four columns of a row each.
struct Share {
  int32_t first, end;
  int32_t count;  // blocks that have a share
};

template <class Shape>
__device__ __forceinline__ Share share_of(const Params& params, const Part& own) {
  // A sector of each slot at least: less would be read twice.
  constexpr int32_t kLeast = 8;
  const int32_t items = own.work.row_count * (Shape::kDim / 4);
  if (params.meets == 0) {
    return {0, items, 1};
  }
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  const int32_t each = max(params.parts.quotient(items + parts - 1), kLeast);
  const int32_t first = min(own.part * each, items);
  return {first, min(first + each, items), (items + each - 1) / each};
}

template <class Shape>
__device__ __forceinline__ RowStats* slot_stats(const Params& params, float* slot) {
  return reinterpret_cast<RowStats*>(slot + params.slot_rows * Shape::kDim);
}

/// The sums of a block's only team, from its registers to its slot.
template <class Shape>
__device__ __forceinline__ void write_part(const Params& params, int32_t row_count,
                                           RowState<Shape>& state) {
  const uint32_t lane = threadIdx.x % 32;
  float* slot = params.slots + int64_t{blockIdx.x} * params.slot_floats;
  state.add_lanes();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto row = static_cast<int32_t>(threadIdx.x / 32 * 16 + lane / 4 + r * 8);
    if (row >= row_count) {
      continue;
    }
    if (lane % 4 == 0) {
      slot_stats<Shape>(params, slot)[row] = {state.largest[r], state.sum[r]};
    }
    float* target = slot + row * Shape::kDim + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < Shape::kDim / 8; ++c) {
      *reinterpret_cast<float2*>(target + c * 8) = {state.out[c][2 * r], state.out[c][2 * r + 1]};
    }
  }
}

/// Joins parts first, first + step, ... below `count` of four columns of a row, some loads at a
/// time: each is a trip to the L2 cache, but the instructions of more take as long to arrive.
template <class Shape>
__device__ __forceinline__ JoinedRow join_parts(const Params& params, const float* slots,
                                                int32_t first, int32_t count, int32_t step,
                                                int32_t item) {
  constexpr int kOnce = 4;
  const int32_t row = item / (Shape::kDim / 4);
  const float* stats = slots + params.slot_rows * Shape::kDim + row * 2;
  const float* values = slots + item * 4;
  JoinedRow joined;
#pragma unroll 1
  for (int32_t base = first; base < count; base += kOnce * step) {
    RowStats part_stats[kOnce];
    float4 part_value[kOnce];
    float largest = kNothing;
#pragma unroll
    for (int i = 0; i < kOnce; ++i) {
      part_stats[i] = {kNothing, 0};
      part_value[i] = {0, 0, 0, 0};
      if (base + i * step < count) {
        const int64_t at = int64_t{base + i * step} * params.slot_floats;
        part_stats[i] = __ldcg(reinterpret_cast<const RowStats*>(stats + at));
        part_value[i] = __ldcg(reinterpret_cast<const float4*>(values + at));
      }
    }
#pragma unroll
    for (int i = 0; i < kOnce; ++i) {
      largest = fmaxf(largest, part_stats[i].x);
    }
    joined.raise(largest, params.unit);
#pragma unroll
    for (int i = 0; i < kOnce; ++i) {
      joined.add(part_stats[i], part_value[i], params.unit);
    }
  }
  return joined;
}

/// Joins a share of a unit's results. Where it has fewer items than the block has threads, groups
/// of threads take parts in turn, and their sums are joined in shared memory.
template <class Shape>
__device__ __forceinline__ void join_share(const Params& params, const Part& own,
                                           const Share& share, float* memory) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  const float* slots = params.slots + int64_t{own.index} * parts * params.slot_floats;
  const int32_t items = share.end - share.first;
  const int32_t log_width = 32 - __clz(items - 1);  // 0 for one item
  const int32_t groups = max(min(Shape::kThreads >> log_width, parts), 1);
  const int32_t group = groups > 1 ? thread >> log_width : 0;
  const int32_t own_item = groups > 1 ? thread & ((1 << log_width) - 1) : thread;
  auto* values = reinterpret_cast<float4*>(memory);
  auto* stats = reinterpret_cast<RowStats*>(values + Shape::kThreads);
#pragma unroll 1
  for (int32_t at = own_item; group < groups && at < items; at += Shape::kThreads) {
    JoinedRow joined = join_parts<Shape>(params, slots, group, parts, groups, share.first + at);
    if (groups > 1) {
      values[thread] = joined.value;
      stats[thread] = joined.total;
      break;
    }
    const int32_t item = share.first + at;
    write_result<Shape>(params, own.unit, own.work.rows, item / kColumns, item % kColumns * 4,
                        joined);
  }
  if (groups == 1) {
    return;
  }
  __syncthreads();
  if (thread < items) {
    JoinedRow joined;
    float largest = kNothing;
#pragma unroll 4
    for (int32_t other = 0; other < groups; ++other) {
      largest = fmaxf(largest, stats[(other << log_width) + thread].x);
    }
    joined.raise(largest, params.unit);
#pragma unroll 4
    for (int32_t other = 0; other < groups; ++other) {
      const int32_t from = (other << log_width) + thread;
      joined.add(stats[from], values[from], params.unit);
    }
    const int32_t item = share.first + thread;
    write_result<Shape>(params, own.unit, own.work.rows, item / kColumns, item % kColumns * 4,
                        joined);
  }
}

/// Counts a block of a unit as arrived; waits for the others if it has a share. By one thread,
/// behind a barrier of the block; true where the block joins.
__device__ __forceinline__ bool arrive_part(const Params& params, unsigned long long* counter,
                                            bool has_share) {
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  cuda::random_delay();
  __threadfence();
  if (params.meets == 0) {
    const bool last = arrive_last(counter, parts);
    __threadfence();
    return last;
  }
  auto arrived = static_cast<int32_t>(atomicAdd(counter, 1ull) & 0xffff) + 1;
  if (has_share) {
    const cuda::HangGuard guard;
    while (arrived < parts) {
      arrived = static_cast<int32_t>(*static_cast<volatile unsigned long long*>(counter) & 0xffff);
      guard.poll({"a block", "the parts of its unit"}, static_cast<uint32_t>(arrived));
    }
    __threadfence();
  }
  return has_share;
}

/// What becomes of a block's part, once its sums are in its slot.
template <class Shape>
__device__ __forceinline__ void join_unit(const Params& params, const Part& own, float* memory) {
  __shared__ int joins;
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  if (own.work.row_count <= 0) {
    return;  // nobody would reset the count
  }
  const Share share = share_of<Shape>(params, own);
  unsigned long long* counter = params.counters + own.index;
  unsigned long long departed = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    joins = arrive_part(params, counter, share.first < share.end) ? 1 : 0;
    if (params.meets != 0 && joins != 0) {
      departed = atomicAdd(counter, 1ull) + 1;
    }
  }
  __syncthreads();
  if (joins == 0) {
    return;
  }
  join_share<Shape>(params, own, share, memory);
  // The last to leave resets the count: all others have seen it.
  if (threadIdx.x == 0 && (departed & 0xffff) == static_cast<uint32_t>(parts + share.count)) {
    *static_cast<volatile unsigned long long*>(counter) = 0;
  }
}

/// The sums of a block's teams: the result if they are the whole unit, else the block's slot.
template <class Shape>
__device__ __forceinline__ void write_teams(const Params& params, const Part& own,
                                            const RowStats* stats, const float* sums) {
  constexpr int32_t kColumns = Shape::kDim / 4;
#pragma unroll 1
  for (auto item = static_cast<int32_t>(threadIdx.x); item < own.work.row_count * kColumns;
       item += Shape::kThreads) {
    const int32_t row = item / kColumns;
    const int32_t column = item % kColumns * 4;
    const JoinedRow joined = join_teams<Shape>(params, row, column, stats, sums);
    if (params.parts.divisor == 1) {
      write_result<Shape>(params, own.unit, own.work.rows, row, column, joined);
    } else {
      write_slot<Shape>(params, static_cast<int32_t>(blockIdx.x), row, column, joined);
    }
  }
}

}  // namespace flashloom::decode
