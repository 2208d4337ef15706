#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/ops/attention/decode/decode_boxes.cuh"
#include "flashloom/ops/attention/decode/decode_counter.cuh"
#include "flashloom/ops/attention/decode/decode_products.cuh"
#include "flashloom/ops/attention/decode/decode_rows.cuh"
#include "flashloom/ops/attention/decode/decode_tile.cuh"

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
    pages.fetch_single(params, copies, ahead);
    pages.fetch_rows(params, copies, ahead);
  }
  uint32_t load_stage = buffers;
  uint32_t stage = buffers;
  const auto next = [&](uint32_t current) {
    return current == buffers + (Shape::kStages - 1) * kStageBytes ? buffers
                                                                   : current + kStageBytes;
  };
  count.look();
  state.clear();
  // Queries before the keys' copies: behind them they would wait for all of them.
  constexpr bool kCopied = Shape::kWarpgroups;
  if constexpr (kCopied) {
    if (turns > 0) {
      copy_queries<Shape>(params, unit, work, memory);
    }
  } else {
    load_rows<Shape>(params, unit, work, memory, state);
  }
  // The first turns only load: one copy of the code that starts loads is fetched, not three.
#pragma unroll 1
  for (int32_t n = -params.ahead; n < turns; ++n) {
    pages.advance(copies);
    if (n >= 0) {
      if (Shape::kStages > 2 && params.ahead > 1) {
        cuda::cp_async_wait<Shape::kStages - 2>();
      } else {
        cuda::cp_async_wait<0>();
      }
      if constexpr (Shape::kWarpgroups) {
        cuda::fence_async_shared();  // copies of threads, read by wgmma
      }
      // The tile is there, and the stage of the one before is free.
      if (kCopied && n == 0) {
        __syncthreads();  // and all teams' parts of the queries
      } else {
        team_sync<Shape>(team);
      }
    }
    if (n + params.ahead < tiles) {
      const bool more = n + params.ahead + 1 < tiles;
      if (more) {
        pages.fetch_single(params, copies, ahead + kStep);
      }
      load_tile<Shape>(params, copies, ahead, pages, load_stage);
      ahead += kStep;
      if (more) {
        pages.fetch_rows(params, copies, ahead);
      }
    }
    cuda::cp_async_commit();
    load_stage = next(load_stage);
    if (kCopied && n == -1) {
      load_rows<Shape>(params, unit, work, memory, state);
    } else if (Shape::kQueriesInShared && n == -1) {
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

}  // namespace flashloom::decode
