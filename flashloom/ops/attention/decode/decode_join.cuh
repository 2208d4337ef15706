#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/decode/decode_counter.cuh"
#include "flashloom/ops/attention/decode/decode_slots.cuh"

namespace flashloom::decode {

// Joining the parts of a unit through slots of the workspace. All blocks of a launch run at once (a
// cooperative launch), so those that have a part of a unit wait for each other, and each joins a
// share of its rows and columns. Blocks of the kernel of parts that are too many to run at once
// cannot wait (params.meets is 0): the last to arrive joins all. Always in an order that only the
// numbers of parts and threads fix.

/// The threads that join a unit: those of a block, or of each half of it one of two units.
struct JoinGroup {
  int32_t thread, threads;
  int32_t half;  // -1: all of the block

  __device__ __forceinline__ void sync() const {
    if (half < 0) {
      __syncthreads();
    } else {
      cuda::named_barrier_sync(static_cast<uint32_t>(half) + 1, static_cast<uint32_t>(threads),
                               {"half a block", "its joined unit"});
    }
  }
};

/// Whether 32 items of a share, those of a warp, lie in one row, and shares are long enough for it.
template <class Shape>
inline constexpr bool kWarpJoins = Shape::kRowWarps == 4 && Shape::kDim % 128 == 0;

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
  int32_t each = max((items + joint.parts - 1) / joint.parts, kLeast);
  if constexpr (kWarpJoins<Shape>) {
    each = (each + 31) / 32 * 32;
  }
  const int32_t first = min(joint.part * each, items);
  return {first, min(first + each, items), (items + each - 1) / each};
}

/// Joins parts first, first + step, ... of four columns of a row, some loads at a time: each is a
/// trip to the L2 cache, but the instructions of more take as long to arrive.
template <class Shape>
__device__ __forceinline__ JoinedRow join_parts(const Params& params, const Joint& joint,
                                                int32_t first, int32_t step, int32_t item) {
  constexpr int kOnce = 4;
  const int32_t row = item / (Shape::kDim / 4);
  JoinedRow joined;
#pragma unroll 1
  for (int32_t base = first; base < joint.parts; base += kOnce * step) {
    RowStats part_stats[kOnce];
    float4 part_value[kOnce];
    float largest = kNothing;
#pragma unroll
    for (int i = 0; i < kOnce; ++i) {
      part_stats[i] = {kNothing, 0};
      part_value[i] = {0, 0, 0, 0};
      if (base + i * step < joint.parts) {
        const int32_t slot = joint.slot(base + i * step);
        part_stats[i] = __ldcg(slot_stats<Shape>(params, slot) + row);
        part_value[i] =
            __ldcg(reinterpret_cast<const float4*>(slot_sums<Shape>(params, slot)) + item);
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

/// Joins many items a thread, four at a time by two parts of each, whose loads are under way
/// together; sums wait in shared memory for the short loop that writes results.
template <class Shape, class Write>
__device__ __forceinline__ void join_many(const Params& params, const Joint& joint,
                                          const Share& share, const JoinGroup& group, float* memory,
                                          Write write) {
  constexpr int kItems = 4;
  constexpr int kOnce = 2;
  const int32_t items = share.end - share.first;
  auto* values = reinterpret_cast<float4*>(memory);
  auto* stats = reinterpret_cast<RowStats*>(values + items);
  static_assert(Shape::kRows * Shape::kDim / 4 * (sizeof(float4) + sizeof(RowStats)) <=
                Shape::kBufferBytes);
#pragma unroll 1
  for (int32_t at = group.thread; at < items; at += kItems * group.threads) {
    JoinedRow joined[kItems];
#pragma unroll 1
    for (int32_t part = 0; part < joint.parts; part += kOnce) {
      RowStats part_stats[kItems][kOnce];
      float4 part_value[kItems][kOnce];
#pragma unroll
      for (int p = 0; p < kOnce; ++p) {
        const int32_t slot = joint.slot(part + p);
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          part_stats[i][p] = {kNothing, 0};
          part_value[i][p] = {0, 0, 0, 0};
          const int32_t own = at + i * group.threads;
          if (own < items && part + p < joint.parts) {
            const int32_t item = share.first + own;
            part_stats[i][p] = __ldcg(slot_stats<Shape>(params, slot) + item / (Shape::kDim / 4));
            part_value[i][p] =
                __ldcg(reinterpret_cast<const float4*>(slot_sums<Shape>(params, slot)) + item);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        joined[i].raise(fmaxf(part_stats[i][0].x, part_stats[i][1].x), params.unit);
#pragma unroll
        for (int p = 0; p < kOnce; ++p) {
          joined[i].add(part_stats[i][p], part_value[i][p], params.unit);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int32_t own = at + i * group.threads;
      if (own < items) {
        values[own] = joined[i].value;
        stats[own] = joined[i].total;
      }
    }
  }
#pragma unroll 1
  for (int32_t at = group.thread; at < items; at += group.threads) {
    JoinedRow joined;
    joined.total = stats[at];
    joined.value = values[at];
    write(at, joined);
  }
}

/// Joins a share by warps, 32 items of a row each: a lane finds the weight of a part, and copies of
/// all parts' sums to shared memory, a place of a thread's own each, are under way together.
template <class Shape>
__device__ __forceinline__ void join_by_warps(const Params& params, const Joint& joint,
                                              const SequenceRows& rows, const Share& share,
                                              float* memory) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  constexpr int32_t kOnce = 32;
  static_assert(kOnce * Shape::kThreads * 16 <= Shape::kBufferBytes);
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  float4* const own = reinterpret_cast<float4*>(memory) + threadIdx.x;
#pragma unroll 1
  for (int32_t item = share.first + static_cast<int32_t>(threadIdx.x); item < share.end;
       item += Shape::kThreads) {
    const int32_t row = item / kColumns;
    JoinedRow joined;
#pragma unroll 1
    for (int32_t part = 0; part < joint.parts; part += kOnce) {
      const int32_t count = min(joint.parts - part, kOnce);
      const float* from = slot_sums<Shape>(params, joint.slot(part)) + item * 4;
      uint32_t place = cuda::shared_address(own);
#pragma unroll 4
      for (int32_t i = 0; i < count; ++i) {
        cuda::cp_async_16(place, from, true);
        from += params.slot_floats;
        place += Shape::kThreads * 16;
      }
      cuda::cp_async_commit();
      RowStats stats = {kNothing, 0};
      if (lane < count) {
        stats = __ldcg(slot_stats<Shape>(params, joint.slot(part + lane)) + row);
      }
      float largest = stats.x;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
      }
      joined.raise(largest, params.unit);
      const float weight = cuda::exp2_fast((stats.x - joined.total.x) * params.unit);
      float sum = weight * stats.y;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
      }
      joined.total.y += sum;
      cuda::cp_async_wait<0>();
#pragma unroll 4
      for (int32_t i = 0; i < count; ++i) {
        joined.add(own[i * Shape::kThreads], __shfl_sync(0xffffffffu, weight, i));
      }
    }
    write_result<Shape>(params, joint.unit, rows, row, item % kColumns * 4, joined);
  }
}

/// Joins a share of a unit's results. Where it has fewer items than threads, sets of threads take
/// parts in turn, and their sums are joined in shared memory.
template <class Shape>
__device__ __forceinline__ void join_share(const Params& params, const Joint& joint,
                                           const SequenceRows& rows, const Share& share,
                                           const JoinGroup& group, float* memory) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  const int32_t thread = group.thread;
  const int32_t items = share.end - share.first;
  const int32_t log_width = 32 - __clz(items - 1);  // 0 for one item
  const int32_t sets = max(min(group.threads >> log_width, joint.parts), 1);
  const int32_t set = sets > 1 ? thread >> log_width : 0;
  const int32_t own_item = sets > 1 ? thread & ((1 << log_width) - 1) : thread;
  auto* values = reinterpret_cast<float4*>(memory);
  auto* stats = reinterpret_cast<RowStats*>(values + group.threads);
  const auto write = [&](int32_t at, const JoinedRow& joined) {
    const int32_t item = share.first + at;
    write_result<Shape>(params, joint.unit, rows, item / kColumns, item % kColumns * 4, joined);
  };
  if (items > group.threads) {
    join_many<Shape>(params, joint, share, group, memory, write);
    return;
  }
#pragma unroll 1
  for (int32_t at = own_item; set < sets && at < items; at += group.threads) {
    const JoinedRow joined = join_parts<Shape>(params, joint, set, sets, share.first + at);
    if (sets > 1) {
      values[thread] = joined.value;
      stats[thread] = joined.total;
      break;
    }
    write(at, joined);
  }
  if (sets == 1) {
    return;
  }
  group.sync();
  if (thread < items) {
    JoinedRow joined;
    float largest = kNothing;
#pragma unroll 4
    for (int32_t other = 0; other < sets; ++other) {
      largest = fmaxf(largest, stats[(other << log_width) + thread].x);
    }
    joined.raise(largest, params.unit);
#pragma unroll 4
    for (int32_t other = 0; other < sets; ++other) {
      const int32_t from = (other << log_width) + thread;
      joined.add(stats[from], values[from], params.unit);
    }
    write(thread, joined);
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
/// the group's thread 0 knows. Begins with a barrier of the group.
template <class Shape, bool kByWarps = false>
__device__ __forceinline__ void join_unit(const Params& params, const Joint& joint,
                                          const SequenceRows& rows, int32_t row_count,
                                          unsigned long long* counter, int32_t arrived,
                                          const JoinGroup& group, float* memory) {
  __shared__ int joined_by[2];
  int& joins = joined_by[max(group.half, 0)];
  const Share share = share_of<Shape>(params, joint, row_count);
  const bool has_share = share.first < share.end;
  unsigned long long departed = 0;
  group.sync();
  if (group.thread == 0) {
    if (params.meets != 0 && has_share) {
      const cuda::HangGuard guard;
      while (arrived < joint.parts) {
        arrived =
            static_cast<int32_t>(*static_cast<volatile unsigned long long*>(counter)) & 0xffff;
        guard.poll({"a block", "the parts of its unit"}, static_cast<uint32_t>(arrived));
      }
      __threadfence();
      departed = atomicAdd(counter, 1ull) + 1;  // behind the fence, which would wait for it
    } else if (has_share) {
      __threadfence();
    }
    joins = has_share && arrived >= joint.parts ? 1 : 0;
  }
  group.sync();
  if (joins == 0) {
    return;
  }
  // By warps an item is a trip to the L2 cache, else some parts of it are, of four items at once.
  bool by_warps = false;
  if constexpr (kByWarps) {
    by_warps = share.end - share.first <= 2 * Shape::kThreads;
    if (by_warps) {
      join_by_warps<Shape>(params, joint, rows, share, memory);
    }
  }
  if (!by_warps) {
    join_share<Shape>(params, joint, rows, share, group, memory);
  }
  // The last to leave resets the count: all others have seen it.
  const int32_t leaves = params.meets != 0 ? joint.parts + share.count : 0;
  if (group.thread == 0 && static_cast<int32_t>(departed & 0xffff) == leaves) {
    *static_cast<volatile unsigned long long*>(counter) = 0;
  }
}

}  // namespace flashloom::decode
