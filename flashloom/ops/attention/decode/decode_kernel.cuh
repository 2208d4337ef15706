#pragma once

#include "flashloom/ops/attention/decode/decode_join.cuh"
#include "flashloom/ops/attention/decode/decode_line.cuh"
#include "flashloom/ops/attention/decode/decode_merge.cuh"
#include "flashloom/ops/attention/decode/decode_piece.cuh"

namespace flashloom::decode {

__device__ __forceinline__ void begin_decode_block() {
  if (cuda::kDebug && threadIdx.x == 0) {
    cuda::begin_debug_block();
  }
  if (cuda::kDebug) {
    __syncthreads();
  }
}

__device__ __forceinline__ void report_faults(const Params& params, const Work& work) {
  if (work.rows.faulty && params.status != nullptr && threadIdx.x == 0) {
    *params.status = 1;
  }
}

/// Before the first piece. The producer starts with all stages free.
template <class Shape>
__device__ __forceinline__ Phases begin_barriers(const typename Shape::KernelParams& params,
                                                 Barriers<Shape>& barriers) {
  Phases phases = {0, 0};
  if constexpr (Shape::kProducer) {
    if (threadIdx.x == Shape::kTeamsThreads) {
      cuda::prefetch_tensor_map(&params.k_map);
      cuda::prefetch_tensor_map(&params.v_map);
      init_barriers<Shape>(barriers);
    }
    phases.stages = threadIdx.x >= Shape::kTeamsThreads ? 0xffffffffu : 0;
    __syncthreads();
  }
  return phases;
}

/// A part of a unit a block.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    attention_decode_parts_kernel(const __grid_constant__ typename Shape::KernelParams params) {
  extern __shared__ __align__(1024) float memory[];
  begin_decode_block();
  __shared__ Barriers<Shape> barriers;
  __shared__ RowStats stats[Shape::kTeams * Shape::kRows];
  __shared__ alignas(Part) unsigned char kept_bytes[sizeof(Part)];  // Part has initializers
  Part& kept = *reinterpret_cast<Part*>(kept_bytes);
  const Part found = find_part<Shape>(params);
  report_faults(params, found.work);
  // What only the end needs has no registers beside the sums of blocks that fill them.
  constexpr bool kKept = Shape::kProducer || Shape::kDim > 128;
  if (kKept && threadIdx.x == 0) {
    kept = found;
  }
  const Part& own = kKept ? kept : found;
  Phases phases = begin_barriers<Shape>(params, barriers);
  {
    RowState<Shape> state;
    work_on_piece<Shape>(
        params, found.unit, found.work, found.begin, found.end, memory, barriers, phases, state,
        CountStart(params.parts.divisor > 1 && threadIdx.x == 0 ? params.counters + found.index
                                                                : nullptr));
    const auto slot = static_cast<int32_t>(blockIdx.x);
    const bool whole = params.parts.divisor == 1;
    if constexpr (Shape::kTeams == 1) {
      if (whole) {
        write_whole<Shape>(params, own.unit, own.work, state);
      } else {
        write_part<Shape>(params, slot, own.work.row_count, state);
      }
    } else {
      __syncthreads();  // the buffers become the sums'
      gather_teams<Shape>(params, state, own.work.row_count, stats, memory);
      write_teams<Shape>(params, own.unit, own.work, whole, slot, stats, memory);
    }
  }
  if (params.parts.divisor > 1 && own.work.row_count > 0) {
    unsigned long long* counter = params.counters + own.index;
    __syncthreads();
    const int32_t arrived = threadIdx.x == 0 ? arrive_part(counter) : 0;
    join_unit<Shape, kWarpJoins<Shape>>(
        params, joint_of_parts(params, own), own.work.rows, own.work.row_count, counter, arrived,
        {static_cast<int32_t>(threadIdx.x), Shape::kThreads, -1}, memory);
  }
}

/// A stretch of the line of all units a block.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    attention_decode_line_kernel(const __grid_constant__ typename Shape::KernelParams params) {
  extern __shared__ __align__(1024) float memory[];
  begin_decode_block();
  __shared__ Barriers<Shape> barriers;
  Phases phases = begin_barriers<Shape>(params, barriers);
  __shared__ RowStats stats[Shape::kTeams * Shape::kRows];
  __shared__ Unit shared_units[2];  // with other blocks: the stretch's first and last
  auto* lengths = reinterpret_cast<int32_t*>(memory);
  keep_lengths<Shape>(params, static_cast<int32_t>(threadIdx.x), Shape::kThreads, lengths);
  __syncthreads();
  Stretch stretch = find_stretch<Shape>(params, lengths);
  if constexpr (Shape::kProducer) {
    cuda::fence_async_shared();
  }
  __syncthreads();  // the lengths' place becomes the keys'
  if (stretch.begin >= stretch.end) {
    return;
  }
  Unit& next = stretch.unit;
  int32_t shared_count = 0;
#pragma unroll 1
  while (next.start < stretch.end) {
    const Work work = resolve<Shape>(params, next.sequence, next.row_tile);
    Unit unit = next;
    unit.start += Shape::kPieceTiles;  // the place of its first tile
    const int32_t first_tile = max(stretch.begin - unit.start, 0);
    const int32_t last_tile = min(stretch.end - unit.start, work.tiles);
    if (first_tile < last_tile) {
      report_faults(params, work);
      const bool whole = last_tile - first_tile == work.tiles;
      const int32_t slot = stretch.line.slot(stretch.number, unit.start);
      {
        RowState<Shape> state;
        work_on_piece<Shape>(
            params, unit, work, first_tile, last_tile, memory, barriers, phases, state,
            CountStart(!whole && threadIdx.x == 0 ? unit_counter(params, unit) : nullptr));
        if constexpr (Shape::kTeams == 1) {
          if (whole) {
            write_whole<Shape>(params, unit, work, state);
          } else {
            write_part<Shape>(params, slot, work.row_count, state);
          }
        } else {
          __syncthreads();  // the buffers become the sums'
          gather_teams<Shape>(params, state, work.row_count, stats, memory);
          write_teams<Shape>(params, unit, work, whole, slot, stats, memory);
          if constexpr (Shape::kProducer) {
            cuda::fence_async_shared();
          }
        }
        __syncthreads();  // the buffers become the next piece's
      }
      if (!whole) {
        if (threadIdx.x == 0) {
          arrive_part(unit_counter(params, unit));
          shared_units[shared_count] = unit;
        }
        ++shared_count;
      }
    }
    advance(params, line_length<Shape>(work.tiles), next);
  }
  // Only now, so that nobody waits for a block that has yet to come to its unit's part. Two units
  // are joined side by side, by half the block each.
  __syncthreads();
  JoinGroup group = {static_cast<int32_t>(threadIdx.x), Shape::kThreads, -1};
  if (shared_count == 2) {
    group.threads = Shape::kTeamsThreads / 2;
    group.half = group.thread / group.threads;
    group.thread -= group.half * group.threads;
  }
  if (shared_count == 0 || group.half > 1) {
    return;
  }
  const Unit unit = shared_units[max(group.half, 0)];
  const Work work = resolve<Shape>(params, unit.sequence, unit.row_tile);
  join_unit<Shape>(params, joint_of_line(stretch, unit, work), work.rows, work.row_count,
                   unit_counter(params, unit), 0, group,
                   memory + max(group.half, 0) * (Shape::kBufferBytes / 8));
}

}  // namespace flashloom::decode
