#pragma once

#include "flashloom/ops/attention/decode/decode_attend.cuh"
#include "flashloom/ops/attention/decode/decode_boxes.cuh"
#include "flashloom/ops/attention/decode/decode_join.cuh"
#include "flashloom/ops/attention/decode/decode_merge.cuh"
#include "flashloom/ops/attention/decode/decode_rows.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

template <class Shape>
__device__ __forceinline__ void team_sync(uint32_t team) {
  if constexpr (Shape::kRowWarps == 1) {
    cuda::random_delay();
    __syncwarp();
  } else if constexpr (Shape::kTeams == 1) {
    cuda::random_delay();
    __syncthreads();
  } else {
    cuda::named_barrier_sync(team + 1, Shape::kTeamThreads, {"a team", "its tile of keys"});
  }
}

/// Tiles [first_tile, last_tile) of a unit, by one team that copies them itself; begins the count.
template <class Shape>
__device__ __forceinline__ void attend_piece(const Params& params, const Unit& unit,
                                             const Work& work, int32_t first_tile,
                                             int32_t last_tile, float* memory,
                                             RowState<Shape>& state, CountStart count) {
  constexpr uint32_t kStageBytes = 2 * Shape::kTileBytes;
  const uint32_t team = threadIdx.x / Shape::kTeamThreads;
  const uint32_t buffers = cuda::shared_address(memory) + team * Shape::kTeamBytes;
  const KeyCopies copies = key_copies<Shape>(params, unit, work);
  // A unit without visible keys has one tile on the line and none to read.
  const int32_t end = work.first < work.last ? last_tile : first_tile;
  const int32_t own = first_tile + static_cast<int32_t>(team);
  const int32_t tiles = own < end ? (end - own + Shape::kTeams - 1) / Shape::kTeams : 0;
  // Teams at named barriers meet equally often: racecheck loses count otherwise.
  constexpr bool kNamed = Shape::kTeams > 1 && Shape::kRowWarps > 1;
  const int32_t turns = kNamed ? (end - first_tile + Shape::kTeams - 1) / Shape::kTeams : tiles;
  constexpr int32_t kStep = Shape::kTeams * Shape::kTileKeys;
  int32_t key = work.base + own * Shape::kTileKeys;  // of the tile that is worked on
  int32_t ahead = key;                               // of the tile that is loaded
  TilePages<Shape> pages;
  if (tiles > 0) {
    pages.fetch(params, copies, ahead);
  }
  uint32_t load_stage = buffers;
  uint32_t stage = buffers;
  const auto next = [&](uint32_t current) {
    return current == buffers + (Shape::kStages - 1) * kStageBytes ? buffers
                                                                   : current + kStageBytes;
  };
  count.look();
  state.clear();
  // Before the copies: behind them they would wait for all of them.
  load_rows<Shape>(params, unit, work, memory, state);
  // The first turns only load: one copy of the code that starts loads is fetched, not three.
#pragma unroll 1
  for (int32_t n = -params.ahead; n < turns; ++n) {
    if (n >= 0) {
      if (Shape::kStages > 2 && params.ahead > 1) {
        cuda::cp_async_wait<Shape::kStages - 2>();
      } else {
        cuda::cp_async_wait<0>();
      }
      if constexpr (Shape::kWarpgroups) {
        cuda::fence_async_shared();  // copies of threads, read by wgmma
      }
      team_sync<Shape>(team);  // the tile is there, and the stage of the one before is free
    }
    if (n + params.ahead < tiles) {
      load_tile<Shape>(params, copies, ahead, pages, load_stage);
      ahead += kStep;
      if (n + params.ahead + 1 < tiles) {
        pages.fetch(params, copies, ahead);
      }
    }
    cuda::cp_async_commit();
    load_stage = next(load_stage);
    if (Shape::kQueriesInShared && n == -1) {
      __syncthreads();  // the queries are there
    }
    if (n < 0 || (kNamed && n >= tiles)) {
      continue;
    }
    if constexpr (Shape::kWarpgroups) {
      attend_by_warpgroup<Shape>(params, state, stage, key);
    } else {
#pragma unroll 1
      for (int step = 0; step < Shape::kSteps; step += Shape::kJoint) {
        attend_by_warp<Shape>(params, state, stage + step * 16 * Shape::kDim * 2, key + step * 16);
      }
    }
    key += kStep;
    stage = next(stage);
  }
  count.begin(params.nonce);  // not before: fences would wait for it
}

/// What a thread's role is in a piece of a unit; only teams have a state afterwards.
template <class Shape>
__device__ __forceinline__ void work_on_piece(const typename Shape::KernelParams& params,
                                              const Unit& unit, const Work& work,
                                              int32_t first_tile, int32_t last_tile, float* memory,
                                              Barriers<Shape>& barriers, Phases& phases,
                                              RowState<Shape>& state, CountStart count) {
  if constexpr (Shape::kProducer) {
    char* bytes = reinterpret_cast<char*>(memory);
    if (threadIdx.x >= Shape::kTeamsThreads) {
      produce_piece<Shape>(params, unit, work, first_tile, last_tile, bytes, barriers, phases);
    } else {
      consume_piece<Shape>(params, work, first_tile, last_tile, bytes, barriers, phases, state,
                           [&] {
                             count.look();
                             load_rows<Shape>(params, unit, work, memory, state);
                             count.begin(params.nonce);
                           });
    }
  } else {
    attend_piece<Shape>(params, unit, work, first_tile, last_tile, memory, state, count);
  }
}

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
  Phases phases = {0, 0, 0};
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
  constexpr bool kKept = Shape::kProducer || Shape::kQueriesInShared;
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
    join_unit<Shape>(params, joint_of_parts(params, own), own.work.rows, own.work.row_count,
                     counter, arrived, {static_cast<int32_t>(threadIdx.x), Shape::kThreads, -1},
                     memory);
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
