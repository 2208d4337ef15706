#pragma once

#include "flashloom/ops/attention/decode/decode_attend.cuh"
#include "flashloom/ops/attention/decode/decode_boxes.cuh"
#include "flashloom/ops/attention/decode/decode_join.cuh"
#include "flashloom/ops/attention/decode/decode_merge.cuh"
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

/// The rows of a warp: what they see, and their queries as operands.
template <class Shape>
__device__ __forceinline__ void load_rows(const Params& params, const Unit& unit, const Work& work,
                                          float* memory, RowState<Shape>& state) {
  const uint32_t row_warp = threadIdx.x / 32 % Shape::kRowWarps;
  const uint32_t lane = threadIdx.x % 32;
  const char* q[2];
  state.all_first = 0;
  state.all_last = work.rows.keys;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto index =
        static_cast<int32_t>(unit.row_tile * Shape::kRows + row_warp * 16 + lane / 4 + r * 8);
    const int32_t query = params.group.quotient(index);
    const auto group = static_cast<int32_t>(params.group.divisor);
    const int32_t head = (unit.key_head - query) * group + index;
    Row& row = state.row[r];
    row = {0, 0, 0, 0};
    q[r] = nullptr;
    if (query < work.rows.queries) {
      row.first = work.first_key(query);
      row.last = work.last_key(query);
      q[r] = static_cast<const char*>(params.q) +
             2 * (unit.sequence * params.q_sequence + head * params.q_head +
                  (work.rows.query_first + query) * params.q_row + lane % 4 * 2);
      state.all_first = max(state.all_first, row.first);
      state.all_last = min(state.all_last, row.last);
      if (params.alibi != nullptr) {
        row.position = static_cast<float>(query + work.shift);
        row.slope = params.alibi[unit.sequence * params.alibi_sequence + head * params.alibi_head] *
                    1.4426950408889634f;
      }
    }
  }
  state.all_first = __reduce_max_sync(0xffffffffu, state.all_first);
  state.all_last = __reduce_min_sync(0xffffffffu, state.all_last);
  char* shared_q = reinterpret_cast<char*>(memory) + Shape::kBufferBytes;
  if constexpr (!Shape::kWarpgroups) {
    shared_q += row_warp * Shape::kDim * 32;
  }
  if constexpr (Shape::kWarpgroups) {
    state.shared_q = cuda::shared_address(shared_q);
  } else {
    state.shared_q = shared_q;
  }
  if (Shape::kQueriesInShared && threadIdx.x >= Shape::kTeamThreads) {
    return;  // the first team's warps store what all teams read
  }
#pragma unroll
  for (int c = 0; c < Shape::kDim / 16; ++c) {
    uint32_t words[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int chunk = c * 2 + part / 2;
      words[part] = q[part % 2] != nullptr && chunk < params.k.chunks
                        ? *reinterpret_cast<const uint32_t*>(q[part % 2] + chunk * 16)
                        : 0;
      if constexpr (!Shape::kQueriesInShared) {
        state.q[c][part] = words[part];
      }
    }
    if constexpr (Shape::kQueriesInShared && Shape::kWarpgroups) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        *reinterpret_cast<uint32_t*>(
            shared_q + cuda::swizzled_offset(row_warp * 16 + lane / 4 + part % 2 * 8,
                                             (c * 2 + part / 2) * 8 + lane % 4 * 2, Shape::kRows)) =
            words[part];
      }
    } else if constexpr (Shape::kQueriesInShared) {
      reinterpret_cast<uint4*>(shared_q)[c * 32 + lane] = {words[0], words[1], words[2], words[3]};
    }
  }
}

/// Tiles [first_tile, last_tile) of a unit, by one team that copies them itself. begin() runs once,
/// beside the first copies.
template <class Shape, class Begin>
__device__ __forceinline__ void attend_piece(const Params& params, const Unit& unit,
                                             const Work& work, int32_t first_tile,
                                             int32_t last_tile, float* memory,
                                             RowState<Shape>& state, Begin begin) {
  constexpr uint32_t kStageBytes = 2 * Shape::kTileBytes;
  const uint32_t team = threadIdx.x / Shape::kTeamThreads;
  const uint32_t buffers = cuda::shared_address(memory) + team * Shape::kTeamBytes;
  const KeyCopies copies = key_copies<Shape>(params, unit, work);
  // A unit without visible keys has one tile on the line and none to read.
  const int32_t end = work.first < work.last ? last_tile : first_tile;
  const int32_t own = first_tile + static_cast<int32_t>(team);
  const int32_t count = own < end ? (end - own + Shape::kTeams - 1) / Shape::kTeams : 0;
  // Teams at named barriers meet equally often: racecheck loses count otherwise.
  constexpr bool kNamed = Shape::kTeams > 1 && Shape::kRowWarps > 1;
  const int32_t turns = kNamed ? (end - first_tile + Shape::kTeams - 1) / Shape::kTeams : count;
  constexpr int32_t kStep = Shape::kTeams * Shape::kTileKeys;
  int32_t key = work.base + own * Shape::kTileKeys;  // of the tile that is worked on
  int32_t ahead = key;                               // of the tile that is loaded
  TilePages<Shape> pages;
  if (count > 0) {
    pages.fetch(params, copies, ahead);
  }
  uint32_t load_stage = buffers;
  uint32_t stage = buffers;
  const auto next = [&](uint32_t current) {
    return current == buffers + (Shape::kStages - 1) * kStageBytes ? buffers
                                                                   : current + kStageBytes;
  };
  state.clear();
  // The first turns only load: one copy of the code that starts loads is fetched, not three.
#pragma unroll 1
  for (int32_t n = 1 - Shape::kStages; n < turns; ++n) {
    if (n >= 0) {
      cuda::cp_async_wait<Shape::kStages - 2>();
      if constexpr (Shape::kWarpgroups) {
        cuda::fence_async_shared();  // copies of threads, read by wgmma
      }
      team_sync<Shape>(team);  // the tile is there, and the stage of the one before is free
    }
    if (n + Shape::kStages - 1 < count) {
      load_tile<Shape>(params, copies, ahead, pages, load_stage);
      ahead += kStep;
      if (n + Shape::kStages < count) {
        pages.fetch(params, copies, ahead);
      }
    }
    cuda::cp_async_commit();
    load_stage = next(load_stage);
    if (n == -1) {  // beside the first copies
      load_rows<Shape>(params, unit, work, memory, state);
      begin();
      if constexpr (Shape::kQueriesInShared) {
        if constexpr (Shape::kWarpgroups) {
          cuda::fence_async_shared();
        }
        __syncthreads();
      }
    }
    if (n < 0 || (kNamed && n >= count)) {
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
}

/// What a thread's role is in a piece of a unit; only teams have a state afterwards.
template <class Shape, class Begin>
__device__ __forceinline__ void work_on_piece(const typename Shape::KernelParams& params,
                                              const Unit& unit, const Work& work,
                                              int32_t first_tile, int32_t last_tile, float* memory,
                                              Barriers<Shape>& barriers, Phases& phases,
                                              RowState<Shape>& state, Begin begin) {
  if constexpr (Shape::kProducer) {
    char* bytes = reinterpret_cast<char*>(memory);
    if (threadIdx.x >= Shape::kTeamsThreads) {
      produce_piece<Shape>(params, unit, work, first_tile, last_tile, bytes, barriers, phases);
    } else {
      consume_piece<Shape>(params, work, first_tile, last_tile, bytes, barriers, phases, state,
                           [&] {
                             load_rows<Shape>(params, unit, work, memory, state);
                             begin();
                           });
    }
  } else {
    attend_piece<Shape>(params, unit, work, first_tile, last_tile, memory, state, begin);
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
    work_on_piece<Shape>(params, found.unit, found.work, found.begin, found.end, memory, barriers,
                         phases, state, [&] {
                           if (params.parts.divisor > 1 && threadIdx.x == 0) {
                             begin_count(params.counters + found.index, params.nonce);
                           }
                         });
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
                     counter, arrived, memory);
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
  Stretch stretch = find_stretch<Shape>(params);
  const Line& line = stretch.line;
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
      const int32_t slot = line.slot(static_cast<int32_t>(blockIdx.x), unit.start);
      {
        RowState<Shape> state;
        work_on_piece<Shape>(params, unit, work, first_tile, last_tile, memory, barriers, phases,
                             state, [&] {
                               if (!whole && threadIdx.x == 0) {
                                 begin_count(unit_counter(params, unit), params.nonce);
                               }
                             });
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
  // Only now, so that nobody waits for a block that has yet to come to its unit's part.
  __syncthreads();
#pragma unroll 1
  for (int32_t i = 0; i < shared_count; ++i) {
    const Unit unit = shared_units[i];
    const Work work = resolve<Shape>(params, unit.sequence, unit.row_tile);
    join_unit<Shape>(params, joint_of_line(line, unit, work), work.rows, work.row_count,
                     unit_counter(params, unit), 0, memory);
  }
}

}  // namespace flashloom::decode
