#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/forward_schedule.cuh"

// The producer warpgroup's warps each run ahead as far as their buffers allow: one finds tiles of
// queries (forward_produce_work.cuh), one loads them, one streams keys, one values.

namespace flashloom::sm90 {

/// Loads the queries of `work` when there is room for them; without `more` tells that none follow.
template <class Shape>
__device__ __forceinline__ void load_queries(const ForwardParams& params, const CUtensorMap* map,
                                             char* tiles, ForwardBarriers<Shape>& barriers,
                                             const ForwardWork& work, bool more,
                                             cuda::PipelineState<Shape::kQStages>& place) {
  using namespace cuda;
  const bool leader = threadIdx.x % 32 == 0;
  mbarrier_wait(&barriers.q_empty[place.stage], place.parity ^ 1,
                {"the producer of queries", "q_empty"});
  // All lanes have read the work and seen the phases that what follows lets end.
  __syncwarp();
  if (leader && !more) {
    mbarrier_arrive(&barriers.q_full[place.stage]);
  } else if (leader) {
    mbarrier_arrive_expect(&barriers.q_full[place.stage], Shape::kQBytes);
#pragma unroll
    for (int p = 0; p < Shape::kPanels; ++p) {
      tma_load_4d(tiles + place.stage * Shape::kQBytes + p * panel_bytes(Shape::kRows), map,
                  &barriers.q_full[place.stage], p * 64, work.sequence.query_first + work.tile.row,
                  work.tile.head, params.problem.cu_query != nullptr ? 0 : work.tile.batch,
                  kEvictFirst);
    }
  }
  place.advance();
}

template <class Shape>
__device__ __forceinline__ void forward_produce_queries(const ForwardParams& params,
                                                        const CUtensorMap* map, char* tiles,
                                                        ForwardBarriers<Shape>& barriers) {
  using namespace cuda;
  PipelineState<Shape::kQStages> place;
  PipelineState<kForwardSlots> slot;
  bool more = true;
  while (more) {
    mbarrier_wait(&barriers.work_full[slot.stage], slot.parity,
                  {"the producer of queries", "work_full"});
    const ForwardWork& work = barriers.work[slot.stage];
    more = work.range.begin >= 0;
    load_queries<Shape>(params, map, tiles, barriers, work, more, place);
    slot.advance();
  }
}

/// Clears the rows of a tile from `first` on. A hidden key has weight 0, but 0 x NaN is NaN, and
/// what lies behind the end of a sequence is not ours to trust.
template <class Shape>
__device__ __forceinline__ void clear_rows(char* tile, int32_t first) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int p = 0; p < Shape::kPanels; ++p) {
    char* panel = tile + p * cuda::panel_bytes(Shape::kKeys);
    // The swizzle permutes within a row, so whole rows can ignore it.
    for (int32_t i = first * 8 + lane; i < Shape::kKeys * 8; i += 32) {
      *reinterpret_cast<uint4*>(panel + 16 * i) = make_uint4(0, 0, 0, 0);
    }
  }
}

/// What the consumers are told of `step`, which `following` follows if there are `more`.
template <class Shape>
__device__ __forceinline__ ForwardStep told_step(const ForwardParams& params,
                                                 const ForwardWork& work, ForwardStep step,
                                                 const ForwardStep& following, bool more) {
  step.last = more ? 0 : 1;
  step.next = more && following.partial < 0 ? following.tile : -1;
  if (const ForwardBlocks& blocks = params.rule.blocks; step.partial >= 0) {
    const int32_t row = work.tile.row % blocks.block_rows;
    step.partial = (step.partial * blocks.block_rows + row) * blocks.line_words +
                   step.tile * Shape::kKeys % blocks.block_keys / 32;
  }
  return step;
}

/// Streams the tiles of keys, or of values, that the queries see, from the last to the first.
template <class Shape, bool kValues>
__device__ __forceinline__ void forward_produce_keys(const ForwardParams& params,
                                                     const CUtensorMap* map, char* tiles,
                                                     ForwardBarriers<Shape>& barriers) {
  using namespace cuda;
  const bool leader = threadIdx.x % 32 == 0;
  constexpr const char* kRole = kValues ? "the producer of values" : "the producer of keys";
  uint64_t* full = kValues ? barriers.v_full : barriers.k_full;
  uint64_t* empty = kValues ? barriers.v_empty : barriers.k_empty;
  PipelineState<kForwardSlots> slot;
  PipelineState<Shape::kStages> place;
  uint32_t border_parity = 0;  // one bit a stage
  for (;; slot.advance()) {
    mbarrier_wait(&barriers.work_full[slot.stage], slot.parity, {kRole, "work_full"});
    const ForwardWork& work = barriers.work[slot.stage];
    if (work.range.begin < 0) {
      return;
    }
    const int32_t first = work.sequence.key_first;
    const int32_t head = work.tile.head / params.problem.heads_per_key;
    const int32_t batch = params.problem.cu_key != nullptr ? 0 : work.tile.batch;
    // Rows behind the end that hold something: other sequences, or padding.
    const int32_t length = work.sequence.key_length;
    const bool dirty = kValues && first + length < params.tensor_keys;
    KeyWalk<Shape> walk(params, work);
    ForwardStep step = {-1, -1, 1, -1};
    bool more = walk.next(params, work, step);
    // The keys' producer has the next tile drawn, where tiles are drawn.
    bool drawn = kValues || params.counter == nullptr;
    do {
      ForwardStep following = {-1, -1, 0, -1};
      more = more && walk.next(params, work, following);
      const int32_t key = max(step.tile, 0) * Shape::kKeys;
      mbarrier_wait(&empty[place.stage], place.parity ^ 1,
                    {kRole, kValues ? "v_empty" : "k_empty"});
      __syncwarp();  // as above
      char* tile = tiles + place.stage * Shape::kTileBytes;
      const bool border = dirty && key + Shape::kKeys > length;
      if (leader) {
        if (Shape::kListed && !kValues) {
          barriers.steps[place.stage] = told_step<Shape>(params, work, step, following, more);
        }
        uint64_t* barrier = border ? &barriers.v_border[place.stage] : &full[place.stage];
        mbarrier_arrive_expect(barrier, Shape::kTileBytes);
#pragma unroll
        for (int p = 0; p < Shape::kPanels; ++p) {
          char* panel = tile + p * panel_bytes(Shape::kKeys);
          tma_load_4d(panel, map, barrier, p * 64, first + key, head, batch, kEvictLast);
        }
        if (!drawn && (!more || walk.left() < params.draw_at)) {
          mbarrier_arrive(&barriers.draw);
          drawn = true;
        }
      }
      if (border) {
        mbarrier_wait(&barriers.v_border[place.stage], border_parity >> place.stage & 1,
                      {kRole, "v_border"});
        border_parity ^= 1u << place.stage;
        clear_rows<Shape>(tile, max(length - key, 0));
        fence_async_shared();
        __syncwarp();
        if (leader) {
          mbarrier_arrive(&full[place.stage]);
        }
      }
      step = following;
      place.advance();
    } while (more);
  }
}

}  // namespace flashloom::sm90
