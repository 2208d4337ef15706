#pragma once

#include "flashloom/ops/attention/decode/decode_merge.cuh"

namespace flashloom::decode {

// Joining the parts of a unit through slots of the workspace. All blocks of a launch run at once (a
// cooperative launch), so those that have a part of a unit wait for each other, and each joins a
// share of its rows and columns. Blocks of the kernel of parts that are too many to run at once
// cannot wait (params.meets is 0): the last to arrive joins all. Always in an order that only the
// numbers of parts and threads fix.

/// The parts of a unit, and the block's place among them.
struct Joint {
  Unit unit;
  int32_t part, parts;
  int32_t first_slot, second_slot, slot_step;

  __device__ __forceinline__ int32_t slot(int32_t i) const {
    return i == 0 ? first_slot : second_slot + (i - 1) * slot_step;
  }
};

/// Where each unit has as many parts, a slot each.
__device__ __forceinline__ Joint joint_of_parts(const Params& params, const Part& own) {
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  return {own.unit, own.part, parts, own.index * parts, own.index * parts + 1, 1};
}

/// Where blocks share a unit of the line. Only the first of them can have begun it behind another.
__device__ __forceinline__ Joint joint_of_line(const Line& line, const Unit& unit,
                                               const Work& work) {
  const int32_t first = line.owner(unit.start);
  const int32_t count = line.owner(unit.start + work.tiles - 1) - first + 1;
  return {unit,
          static_cast<int32_t>(blockIdx.x) - first,
          count,
          line.slot(first, unit.start),
          2 * (first + 1),
          2};
}

/// A block's share of a unit's results: items [first, end), four columns of a row each.
struct Share {
  int32_t first, end;
  int32_t count;  // blocks that have a share
};

template <class Shape>
__device__ __forceinline__ Share share_of(const Params& params, const Joint& joint,
                                          int32_t row_count) {
  // A sector of each slot at least: less would be read twice.
  constexpr int32_t kLeast = 8;
  const int32_t items = row_count * (Shape::kDim / 4);
  if (params.meets == 0) {
    return {0, items, 1};
  }
  const int32_t each = max((items + joint.parts - 1) / joint.parts, kLeast);
  const int32_t first = min(joint.part * each, items);
  return {first, min(first + each, items), (items + each - 1) / each};
}

/// A slot: sums (slot_rows, kDim), then statistics (slot_rows).
template <class Shape>
__device__ __forceinline__ float* slot_sums(const Params& params, int32_t slot) {
  return params.slots + int64_t{slot} * params.slot_floats;
}

template <class Shape>
__device__ __forceinline__ RowStats* slot_stats(const Params& params, int32_t slot) {
  return reinterpret_cast<RowStats*>(slot_sums<Shape>(params, slot) +
                                     params.slot_rows * Shape::kDim);
}

/// The sums of a block's only team, from its registers to a slot.
template <class Shape>
__device__ __forceinline__ void write_part(const Params& params, int32_t slot, int32_t row_count,
                                           RowState<Shape>& state) {
  const uint32_t lane = threadIdx.x % 32;
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
    float* target = slot_sums<Shape>(params, slot) + row * Shape::kDim + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < Shape::kDim / 8; ++c) {
      *reinterpret_cast<float2*>(target + c * 8) = {state.out[c][2 * r], state.out[c][2 * r + 1]};
    }
  }
}

/// The joined sums of a block's teams: the result if they are the whole unit, else into a slot.
template <class Shape>
__device__ __forceinline__ void write_teams(const Params& params, const Unit& unit,
                                            const Work& work, bool whole, int32_t slot,
                                            const RowStats* stats, const float* sums) {
  constexpr int32_t kColumns = Shape::kDim / 4;
#pragma unroll 1
  for (auto item = static_cast<int32_t>(threadIdx.x); item < work.row_count * kColumns;
       item += Shape::kThreads) {
    const int32_t row = item / kColumns;
    const int32_t column = item % kColumns * 4;
    const JoinedRow joined = join_teams<Shape>(params, row, column, stats, sums);
    if (whole) {
      write_result<Shape>(params, unit, work.rows, row, column, joined);
      continue;
    }
    reinterpret_cast<float4*>(slot_sums<Shape>(params, slot))[item] = joined.value;
    if (column == 0) {
      slot_stats<Shape>(params, slot)[row] = joined.total;
    }
  }
}

/// What a share's results are made of: sum over the parts of weight times value, rows of `out`.
/// Where the keys were.
template <class Shape>
struct ShareMemory {
  static constexpr int kWeights = 8192;
  float4 sums[Shape::kThreads];
  int64_t at[Shape::kRows];  // of a row in out
  float weights[kWeights];   // (rows, parts)
  static_assert(sizeof(float4) * Shape::kThreads + 8 * Shape::kRows + 4 * kWeights <=
                Shape::kBufferBytes);
};

/// Weights of the parts of rows [first_row, first_row + count) of a unit, those of a row by
/// neighbouring lanes; writes the lse of rows that begin in the share.
template <class Shape>
__device__ __forceinline__ void weigh_parts(const Params& params, const Joint& joint,
                                            const SequenceRows& rows, const Share& share,
                                            int32_t first_row, int32_t count,
                                            ShareMemory<Shape>& memory) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t log_lanes = min(32 - __clz(joint.parts - 1), 5);
  const int32_t lanes = 1 << log_lanes;
  const int32_t lane = thread & (lanes - 1);
#pragma unroll 1
  for (int32_t base = (thread & ~31) >> log_lanes; base < count;
       base += Shape::kThreads >> log_lanes) {
    const int32_t row = base + ((thread & 31) >> log_lanes);
    const bool exists = row < count;
    const auto stats = [&](int32_t part) {
      return exists && part < joint.parts
                 ? __ldcg(slot_stats<Shape>(params, joint.slot(part)) + first_row + row)
                 : RowStats{kNothing, 0};
    };
    const RowStats own = stats(lane);
    float largest = own.x;
#pragma unroll 1
    for (int32_t part = lane + lanes; part < joint.parts; part += lanes) {
      largest = fmaxf(largest, stats(part).x);
    }
#pragma unroll 1
    for (int32_t step = 1; step < lanes; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    }
    float* weights = memory.weights + row * joint.parts;
    float sum = 0;
#pragma unroll 1
    for (int32_t part = lane; exists && part < joint.parts; part += lanes) {
      const RowStats other = part == lane ? own : stats(part);
      const float weight = cuda::exp2_fast((other.x - largest) * params.unit);
      sum += weight * other.y;
      weights[part] = weight;
    }
    __syncwarp();
#pragma unroll 1
    for (int32_t step = 1; step < lanes; step *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (exists) {
      const bool begins = (first_row + row) * (Shape::kDim / 4) >= share.first;
      const RowEnd end = end_row<Shape>(params, joint.unit, rows, first_row + row, {largest, sum},
                                        begins && lane == 0);
#pragma unroll 1
      for (int32_t part = lane; part < joint.parts; part += lanes) {
        weights[part] *= end.scale;
      }
      if (lane == 0) {
        memory.at[row] = end.at;
      }
    }
  }
}

/// Joins items [begin, end) of a unit, rows from first_row on. Where they are fewer than the block
/// has threads, groups of threads take parts in turn.
template <class Shape>
__device__ __forceinline__ void join_items(const Params& params, const Joint& joint, int32_t begin,
                                           int32_t end, int32_t first_row,
                                           ShareMemory<Shape>& memory) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  constexpr int kItems = 2;  // of a thread at a time: each load is a trip to the L2 cache
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t log_width = 32 - __clz(end - begin - 1);  // 0 for one item
  const int32_t groups = max(min(Shape::kThreads >> log_width, joint.parts), 1);
  const int32_t group = groups > 1 ? thread >> log_width : 0;
  const int32_t first = begin + (groups > 1 ? thread & ((1 << log_width) - 1) : thread);
  const auto write = [&](int32_t item, const float4& value) {
    const int32_t column = item % kColumns * 4;
    if (column < params.value_dim) {
      store_4<typename Shape::Type>(params.out, params.out_is_f32 != 0,
                                    memory.at[item / kColumns - first_row] + column, value);
    }
  };
#pragma unroll 1
  for (int32_t item = first; group < groups && item < end; item += kItems * Shape::kThreads) {
    float4 sums[kItems] = {};
#pragma unroll 4
    for (int32_t part = group; part < joint.parts; part += groups) {
      const float* slot = slot_sums<Shape>(params, joint.slot(part));
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int32_t own = item + i * Shape::kThreads;
        if (own < end) {
          const float4 value = __ldcg(reinterpret_cast<const float4*>(slot) + own);
          const float weight = memory.weights[(own / kColumns - first_row) * joint.parts + part];
          sums[i].x += weight * value.x;
          sums[i].y += weight * value.y;
          sums[i].z += weight * value.z;
          sums[i].w += weight * value.w;
        }
      }
    }
    if (groups > 1) {
      memory.sums[thread] = sums[0];
      break;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (item + i * Shape::kThreads < end) {
        write(item + i * Shape::kThreads, sums[i]);
      }
    }
  }
  if (groups == 1) {
    return;
  }
  __syncthreads();
  if (begin + thread < end) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll 4
    for (int32_t other = 0; other < groups; ++other) {
      const float4 part = memory.sums[(other << log_width) + thread];
      sum.x += part.x;
      sum.y += part.y;
      sum.z += part.z;
      sum.w += part.w;
    }
    write(begin + thread, sum);
  }
}

/// Joins a share of a unit's results, as many rows at a time as there is room for their weights.
template <class Shape>
__device__ __forceinline__ void join_share(const Params& params, const Joint& joint,
                                           const SequenceRows& rows, const Share& share,
                                           float* memory) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  auto& room = *reinterpret_cast<ShareMemory<Shape>*>(memory);
  const int32_t end_row_of_share = (share.end - 1) / kColumns + 1;
  const int32_t rows_once = ShareMemory<Shape>::kWeights / joint.parts;
#pragma unroll 1
  for (int32_t row = share.first / kColumns; row < end_row_of_share; row += rows_once) {
    const int32_t count = min(rows_once, end_row_of_share - row);
    weigh_parts<Shape>(params, joint, rows, share, row, count, room);
    __syncthreads();
    join_items<Shape>(params, joint, max(share.first, row * kColumns),
                      min(share.end, (row + count) * kColumns), row, room);
    __syncthreads();
  }
}

/// Counts a block of a unit as arrived, by one thread, behind a barrier of the block. How many have
/// arrived.
__device__ __forceinline__ int32_t arrive_part(unsigned long long* counter) {
  cuda::random_delay();
  __threadfence();
  return static_cast<int32_t>(atomicAdd(counter, 1ull) & 0xffff) + 1;
}

/// Joins the block's share of a unit once all parts are there; `arrived` of them are, as far as
/// thread 0 knows. Begins with a barrier.
template <class Shape>
__device__ __forceinline__ void join_unit(const Params& params, const Joint& joint,
                                          const SequenceRows& rows, int32_t row_count,
                                          unsigned long long* counter, int32_t arrived,
                                          float* memory) {
  __shared__ int joins;
  const Share share = share_of<Shape>(params, joint, row_count);
  const bool has_share = share.first < share.end;
  unsigned long long departed = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (params.meets != 0 && has_share) {
      const cuda::HangGuard guard;
      while (arrived < joint.parts) {
        arrived =
            static_cast<int32_t>(*static_cast<volatile unsigned long long*>(counter)) & 0xffff;
        guard.poll({"a block", "the parts of its unit"}, static_cast<uint32_t>(arrived));
      }
      departed = atomicAdd(counter, 1ull) + 1;
    }
    joins = has_share && arrived >= joint.parts ? 1 : 0;
    __threadfence();
  }
  __syncthreads();
  if (joins == 0) {
    return;
  }
  join_share<Shape>(params, joint, rows, share, memory);
  // The last to leave resets the count: all others have seen it.
  const int32_t leaves = params.meets != 0 ? joint.parts + share.count : 0;
  if (threadIdx.x == 0 && static_cast<int32_t>(departed & 0xffff) == leaves) {
    *static_cast<volatile unsigned long long*>(counter) = 0;
  }
}

}  // namespace flashloom::decode
