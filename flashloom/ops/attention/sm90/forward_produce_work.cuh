#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/sm90/forward_schedule.cuh"

// The producer warp that finds tiles of queries and divides them among the consumers.

namespace flashloom::sm90 {

/// Finds tiles of queries, from `first` on, and works out each consumer warpgroup's part of them;
/// calls behind(work, more) when the others have been told.
template <class Shape, class Behind>
__device__ __forceinline__ void forward_produce_work(const ForwardParams& params,
                                                     ForwardBarriers<Shape>& barriers,
                                                     int32_t first, const Behind& behind) {
  using namespace cuda;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const bool packed = params.problem.cu_query != nullptr;
  PipelineState<kForwardSlots> slot;
  PackedTiles packed_tiles;
  const auto walkers = static_cast<int32_t>(gridDim.x) * Shape::kTeams;
  int32_t index = first;
  uint32_t drawn = 0;
  bool more = true;
  while (more) {
    if (drawn >= kForwardSlots) {
      mbarrier_wait(&barriers.work_empty[slot.stage], drawn / kForwardSlots + 1 & 1,
                    {"the producer of work", "work_empty"});
    }
    if (drawn > 0) {
      // As late as the pipeline allows: what a block has drawn, others cannot take.
      if (params.counter != nullptr) {
        mbarrier_wait(&barriers.draw, drawn + 1 & 1, {"the producer of work", "draw"});
      }
      int32_t next = index + walkers;
      if (params.counter != nullptr && lane == 0) {
        next = walkers + atomicAdd(params.counter, 1);
      }
      index = __shfl_sync(0xffffffffu, next, 0);
    }
    ++drawn;
    ForwardWork& work = barriers.work[slot.stage];
    ForwardTile tile = {0, 0, 0};
    if (packed) {
      more = packed_tiles.find(params, index, Shape::kRows, tile);
    } else if (more = index < params.tiles; more) {
      int32_t place = index;
      if constexpr (Shape::kListed) {
        place = params.order != nullptr ? params.order[index] : index;
      }
      tile = batched_tile(params, place, Shape::kRows);
    }
    if (lane == 0) {
      work.range.begin = -1;
      if (const ForwardRule& rule = params.rule; Shape::kGeneral && rule.slopes != nullptr) {
        barriers.slopes[slot.stage] =
            rule.slopes[tile.batch * rule.slope_batch + tile.head * rule.slope_head];
      }
    }
    if (more) {
      const Sequence sequence = sequence_of(params.problem, tile.batch);
      const KeyTiles range = key_tiles(sequence, tile.row, Shape::kRows, Shape::kKeys);
      if (lane == 0) {
        const int64_t batch = packed ? 0 : tile.batch;
        work = {tile,
                range,
                {0},
                sequence,
                batch * params.lse_batch + tile.head * params.lse_head +
                    sequence.query_first * params.lse_row};
      }
    }
    __syncwarp();
    ForwardPart part = {};
    if (lane < Shape::kGroups) {
      part = forward_part(work.sequence, work.range, work.tile.row + 64 * lane, Shape::kKeys,
                          Shape::kListed);
    }
    if constexpr (Shape::kSwaps) {
      const bool own = lane < Shape::kGroups;
      const bool swaps = __all_sync(0xffffffffu, !own || may_swap(part)) != 0 &&
                         __any_sync(0xffffffffu, own && part.closed < part.end) != 0;
      part.swapped = swaps ? 1 : 0;
      if (lane == 0) {
        work.swapped = part.swapped;
      }
    }
    if constexpr (Shape::kLeads) {
      part.lead = leading_tile(part, Shape::kGroups);
      if (lane == 0) {
        work.lead = part.lead >= 0 ? part.lead : work.range.end - 1;
      }
    }
    if (lane < Shape::kGroups) {
      barriers.parts[slot.stage][lane] = part;
    }
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&barriers.work_full[slot.stage]);
    }
    behind(work, more);
    slot.advance();
  }
}

}  // namespace flashloom::sm90
