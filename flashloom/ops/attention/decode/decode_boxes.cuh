#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/decode/decode_products.cuh"

namespace flashloom::decode {

// Tiles of K and V by the copy engine, for warpgroups: boxes of 64 columns by params.box_rows rows,
// a lane of the producer's warp each (at most 32: a box has 8 rows or more). Behind cp.async wgmma
// needs a fence, which waits for all of a thread's copies under way. docs/kernels/attention.md says
// where this pays.

/// What producer and warpgroups tell each other.
template <class Shape>
struct Barriers {
  uint64_t full[Shape::kTeams][Shape::kStages];   // bytes have come
  uint64_t empty[Shape::kTeams][Shape::kStages];  // each warp has read
  uint64_t cleared[Shape::kTeams];                // hidden values are 0; each thread
};

template <class Shape>
__device__ __forceinline__ void init_barriers(Barriers<Shape>& barriers) {
  for (int team = 0; team < Shape::kTeams; ++team) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      cuda::mbarrier_init(&barriers.full[team][stage], 1);
      cuda::mbarrier_init(&barriers.empty[team][stage], Shape::kRowWarps);
    }
    cuda::mbarrier_init(&barriers.cleared[team], Shape::kTeamThreads);
  }
  cuda::mbarrier_init_fence();
}

/// Parities that a thread waits for: of its stages, and of cleared values.
struct Phases {
  uint32_t stages, cleared;
};

/// The producer's walk over tiles [first_tile, last_tile) of a unit, those of all teams.
template <class Shape>
__device__ __forceinline__ void produce_piece(const MappedParams& params, const Unit& unit,
                                              const Work& work, int32_t first_tile,
                                              int32_t last_tile, char* memory,
                                              Barriers<Shape>& barriers, Phases& phases) {
  constexpr int32_t kPanels = Shape::kDim / 64;
  constexpr uint32_t kStageBytes = 2 * Shape::kTileBytes;
  if (work.first >= work.last) {
    return;
  }
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t panel = lane / 2 % kPanels;
  const int32_t row = lane / (2 * kPanels) * params.box_rows;
  const bool copies = row < Shape::kTileKeys;
  const CUtensorMap* map = lane % 2 == 0 ? &params.k_map : &params.v_map;
  char* target = memory + lane % 2 * Shape::kTileBytes + panel * Shape::kPanelBytes + row * 128;
  const int32_t* pages =
      params.pages != nullptr ? params.pages + unit.sequence * params.pages_sequence : nullptr;
  int32_t key = work.base + first_tile * Shape::kTileKeys + row;
  // A box without keys to read takes any page that has some.
  const auto page_entry = [&] {
    return pages != nullptr && copies
               ? pages[params.page_size.quotient(min(max(key, work.first), work.last - 1))]
               : 0;
  };
  int32_t page = page_entry();
  uint32_t team = 0;
  uint32_t stage = 0;
#pragma unroll 1
  for (int32_t tile = first_tile; tile < last_tile; ++tile) {
    const uint32_t bit = team * Shape::kStages + stage;
    uint64_t* full = &barriers.full[team][stage];
    cuda::mbarrier_wait(&barriers.empty[team][stage], phases.stages >> bit & 1,
                        {"the producer", "a free stage"});
    phases.stages ^= 1u << bit;
    if (lane == 0) {
      cuda::mbarrier_arrive_expect(full, kStageBytes);
    }
    __syncwarp();
    if (copies) {
      cuda::tma_load_4d(target + bit * kStageBytes, map, full, panel * 64,
                        pages != nullptr ? row_in_page(params, key) : work.rows.key_first + key,
                        unit.key_head,
                        pages != nullptr          ? checked_page(params, page)
                        : params.keys_packed != 0 ? 0
                                                  : unit.sequence);
    }
    key += Shape::kTileKeys;
    if (tile + 1 < last_tile) {
      page = page_entry();
    }
    if (++team == Shape::kTeams) {
      team = 0;
      stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
    }
  }
}

/// Values that no row sees become zeros: the copy engine brings what lies there, and 0 x NaN is
/// NaN.
template <class Shape>
__device__ __forceinline__ void clear_hidden_values(const Work& work, int32_t tile_key,
                                                    char* values) {
  const auto visible = static_cast<uint32_t>(work.last - work.first);
#pragma unroll 1
  for (auto chunk = static_cast<int32_t>(threadIdx.x % Shape::kTeamThreads);
       chunk < Shape::kTileBytes / 16; chunk += Shape::kTeamThreads) {
    const int32_t key = tile_key + chunk / 8 % Shape::kTileKeys;
    if (static_cast<uint32_t>(key - work.first) >= visible) {
      reinterpret_cast<uint4*>(values)[chunk] = {0, 0, 0, 0};
    }
  }
  cuda::fence_async_shared();
}

/// Arrives at a barrier of a phase a meeting, and waits for the others.
__device__ __forceinline__ void meet(uint64_t* barrier, uint32_t& parity, cuda::WaitPlace place) {
  cuda::mbarrier_arrive(barrier);
  cuda::mbarrier_wait(barrier, parity, place);
  parity ^= 1;
}

/// Tiles [first_tile, last_tile) of a unit, by one warpgroup of a block with a producer.
/// load_queries() runs beside the first copies.
template <class Shape, class Load>
__device__ __forceinline__ void consume_piece(const MappedParams& params, const Work& work,
                                              int32_t first_tile, int32_t last_tile, char* memory,
                                              Barriers<Shape>& barriers, Phases& phases,
                                              RowState<Shape>& state, Load load_queries) {
  constexpr uint32_t kStageBytes = 2 * Shape::kTileBytes;
  const uint32_t team = threadIdx.x / Shape::kTeamThreads;
  state.clear();
  load_queries();
  if (work.first >= work.last) {
    return;
  }
  int32_t key = work.base + (first_tile + static_cast<int32_t>(team)) * Shape::kTileKeys;
  uint32_t stage = 0;
#pragma unroll 1
  for (int32_t tile = first_tile + static_cast<int32_t>(team); tile < last_tile;
       tile += Shape::kTeams) {
    const uint32_t tiles = team * Shape::kTeamBytes + stage * kStageBytes;
    cuda::mbarrier_wait(&barriers.full[team][stage], phases.stages >> stage & 1,
                        {"a warpgroup", "its tile of keys"});
    phases.stages ^= 1u << stage;
    if (key < work.first || key + Shape::kTileKeys > work.last) {
      clear_hidden_values<Shape>(work, key, memory + tiles + Shape::kTileBytes);
      meet(&barriers.cleared[team], phases.cleared, {"a warpgroup", "its cleared values"});
    }
    attend_by_warpgroup<Shape>(params, state, cuda::shared_address(memory) + tiles, key);
    if (threadIdx.x % 32 == 0) {
      cuda::mbarrier_arrive(&barriers.empty[team][stage]);
    }
    key += Shape::kTeams * Shape::kTileKeys;
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }
}

}  // namespace flashloom::decode
