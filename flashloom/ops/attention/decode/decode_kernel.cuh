#pragma once

#include "flashloom/ops/attention/decode/decode_merge.cuh"
#include "flashloom/ops/attention/decode/decode_tile.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

template <class Shape>
__device__ __forceinline__ void team_sync(uint32_t team) {
  if constexpr (Shape::kRowWarps == 1) {
    __syncwarp();
  } else {
    cuda::named_barrier_sync(team + 1, Shape::kTeamThreads);
  }
}

/// The rows of a warp: what they see, their queries as operands, sums at zero.
template <class Shape>
__device__ __forceinline__ void start_rows(const Params& params, const Unit& unit,
                                           const SequenceRows& rows, float* memory,
                                           RowState<Shape>& state) {
  const uint32_t row_warp = threadIdx.x / 32 % Shape::kRowWarps;
  const uint32_t lane = threadIdx.x % 32;
  const int64_t shift = shift_of(params.source, rows);
  state.clear();
  const char* q[2];
  state.all_first = 0;
  state.all_last = rows.keys;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto index =
        static_cast<int32_t>(unit.row_tile * Shape::kRows + row_warp * 16 + lane / 4 + r * 8);
    const int32_t query = index / params.group;
    const int32_t head = unit.key_head * params.group + index % params.group;
    Row& row = state.row[r];
    row = {0, 0, 0, 0};
    q[r] = nullptr;
    if (query < rows.queries) {
      row.first = first_key(params.source, query + shift, rows.keys);
      row.last = last_key(params.source, query + shift, rows.keys);
      q[r] = static_cast<const char*>(params.q) +
             2 * (unit.sequence * params.q_sequence + head * params.q_head +
                  int64_t{rows.query_first + query} * params.q_row);
      state.all_first = max(state.all_first, row.first);
      state.all_last = min(state.all_last, row.last);
      if (params.alibi != nullptr) {
        row.position = static_cast<float>(query + shift);
        row.slope = params.alibi[unit.sequence * params.alibi_sequence + head * params.alibi_head] *
                    1.4426950408889634f;
      }
    }
  }
  state.all_first = __reduce_max_sync(0xffffffffu, state.all_first);
  state.all_last = __reduce_min_sync(0xffffffffu, state.all_last);
  auto* shared_q = reinterpret_cast<uint4*>(memory + Shape::kBufferBytes / 4) +
                   row_warp * (Shape::kDim / 16) * 32;
  state.shared_q = shared_q;
  if (Shape::kQueriesInShared && threadIdx.x >= Shape::kTeamThreads) {
    return;  // the first team's warps store what all teams read
  }
#pragma unroll
  for (int c = 0; c < Shape::kDim / 16; ++c) {
    uint32_t words[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const char* source = q[part % 2];
      const uint32_t column = c * 16 + part / 2 * 8 + lane % 4 * 2;
      const bool exists = source != nullptr && static_cast<int32_t>(column) < params.k.chunks * 8;
      words[part] = exists ? *reinterpret_cast<const uint32_t*>(source + column * 2) : uint32_t{0};
      if constexpr (!Shape::kQueriesInShared) {
        state.q[c][part] = words[part];
      }
    }
    if constexpr (Shape::kQueriesInShared) {
      shared_q[c * 32 + lane] = {words[0], words[1], words[2], words[3]};
    }
  }
}

/// Tiles [first_tile, last_tile) of a unit, by one team.
template <class Shape>
__device__ __forceinline__ void attend_piece(const Params& params, const Unit& unit,
                                             const SequenceRows& rows, const Span& span,
                                             int32_t first_tile, int32_t last_tile,
                                             bool shared_unit, float* memory,
                                             RowState<Shape>& state) {
  const uint32_t team = threadIdx.x / Shape::kTeamThreads;
  const uint32_t team_thread = threadIdx.x % Shape::kTeamThreads;
  const uint32_t buffers = cuda::shared_address(memory) + team * Shape::kTeamBytes;
  KeySource keys;
  const int64_t place = params.pages != nullptr ? 0 : unit.sequence;
  keys.k = params.k.data + place * params.k.sequence + unit.key_head * params.k.head +
           rows.key_first * params.k.row;
  keys.v = params.v.data + place * params.v.sequence + unit.key_head * params.v.head +
           rows.key_first * params.v.row;
  keys.pages =
      params.pages != nullptr ? params.pages + unit.sequence * params.pages_sequence : nullptr;
  keys.last = span.last;
  // A unit without visible keys has one tile on the line and none to read.
  const int32_t end = span.first < span.last ? last_tile : first_tile;
  const int32_t own = first_tile + static_cast<int32_t>(team);
  const int32_t count = own < end ? (end - own + Shape::kTeams - 1) / Shape::kTeams : 0;
  const auto key_of = [&](int32_t n) {
    return span.first + (own + n * Shape::kTeams) * Shape::kTileKeys;
  };

  Place places[Shape::kStages];
#pragma unroll
  for (int n = 0; n < Shape::kStages; ++n) {
    places[n] = n < count ? look_up<Shape>(params, keys, key_of(n)) : Place{0, 0};
  }
#pragma unroll
  for (int n = 0; n < Shape::kStages - 1; ++n) {
    if (n < count) {
      load_tile<Shape>(params, keys, key_of(n), places[n], buffers + n * 2 * Shape::kTileBytes,
                       team_thread);
    }
    cuda::cp_async_commit();
  }
  Place next = places[Shape::kStages - 1];
  if (shared_unit && threadIdx.x == 0) {
    begin_count(counter_of(params, unit), params.nonce);  // beside the first copies
  }
  start_rows<Shape>(params, unit, rows, memory, state);
  if constexpr (Shape::kQueriesInShared) {
    __syncthreads();
  }

  uint32_t stage = 0;
  for (int32_t n = 0; n < count; ++n) {
    cuda::cp_async_wait<Shape::kStages - 2>();
    team_sync<Shape>(team);  // the tile is there, and the stage of the one before is free
    const int32_t ahead = n + Shape::kStages - 1;
    const uint32_t free_stage = stage == 0 ? Shape::kStages - 1 : stage - 1;
    if (ahead < count) {
      load_tile<Shape>(params, keys, key_of(ahead), next,
                       buffers + free_stage * 2 * Shape::kTileBytes, team_thread);
    }
    cuda::cp_async_commit();
    if (ahead + 1 < count) {
      next = look_up<Shape>(params, keys, key_of(ahead + 1));
    }
    const uint32_t tile = buffers + stage * 2 * Shape::kTileBytes;
#pragma unroll 1
    for (int step = 0; step < Shape::kSteps; step += Shape::kJoint) {
      attend<Shape>(params, state, tile + step * 16 * Shape::kDim * 2, key_of(n) + step * 16);
    }
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    attention_decode_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(128) float shared_memory[];
  __shared__ RowStats stats[Shape::kTeams * Shape::kRows];
  float* memory = shared_memory;
  const Line line(line_length<Shape>(params), params.tiles_block);
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (block >= line.blocks) {
    return;
  }
  int32_t place = line.cut(block);
  const int32_t end = line.cut(block + 1);
  Unit unit = find_unit<Shape>(params, place);
  while (place < end) {
    const SequenceRows rows = resolve_rows(params.source, unit.sequence);
    const Span span = span_of<Shape::kRows>(params, rows, unit.row_tile);
    const int32_t tiles = tiles_of<Shape>(span);
    if (tiles > 0) {
      if (rows.faulty && params.status != nullptr && threadIdx.x == 0) {
        *params.status = 1;
      }
      const int32_t first_tile = place - unit.start;
      const int32_t last_tile = min(end - unit.start, tiles);
      const Line::Owners owners = line.owners(unit.start, tiles);
      const int32_t row_count = stored_rows<Shape>(params, unit, rows);
      {
        RowState<Shape> state;
        attend_piece<Shape>(params, unit, rows, span, first_tile, last_tile, owners.count > 1,
                            memory, state);
        __syncthreads();  // the buffers become the sums'
        gather_teams<Shape>(state, row_count, stats, memory);
      }
      finish_piece<Shape>(params, line, unit, rows, owners, row_count, stats, memory);
      place = unit.start + last_tile;
      __syncthreads();  // the sums become the buffers of the next piece
    }
    advance(params, tiles, unit);
  }
}

}  // namespace flashloom::decode
