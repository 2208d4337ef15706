#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"

// The backward kernel's producer warpgroup, one thread in each of four warps: two stream tiles, two
// keep the order of sums.

namespace flashloom::sm90 {

template <class Shape>
__device__ __forceinline__ void backward_load(char* tile, const CUtensorMap* map, uint64_t* full,
                                              int32_t rows, int32_t row, int32_t head,
                                              int32_t batch) {
#pragma unroll
  for (int p = 0; p < Shape::kPanels; ++p) {
    cuda::tma_load_4d(tile + p * cuda::panel_bytes(rows), map, full, p * 64, row, head, batch,
                      cuda::kEvictLast);
  }
}

/// Streams the tiles of q (with lse) or of dout (with delta). `steps` tells the consumers what a
/// tile is, which they find out for themselves where it takes no lists; or null.
template <class Shape>
__device__ __forceinline__ void backward_produce(const BackwardParams& params,
                                                 const BackwardWork& work, const CUtensorMap* map,
                                                 const float* rows, char* tiles, float* row_tiles,
                                                 uint64_t* full, uint64_t* empty,
                                                 BackwardStep* steps) {
  using namespace cuda;
  PipelineState<Shape::kStages> place;
  const int32_t batch = params.problem.cu_query != nullptr ? 0 : work.batch;
  BackwardWalk<Shape> walk;
  for (bool more = walk.start(params, work); more; more = walk.advance(params, work)) {
    const int64_t first = first_place(params.problem, work.sequence, work.batch, walk.head,
                                      params.query_tiles, Shape::kQueries);
    mbarrier_wait(&empty[place.stage], place.parity ^ 1, {"a producer", "q_empty or dout_empty"});
    if (steps != nullptr) {
      steps[place.stage] = walk;
    }
    mbarrier_arrive_expect(&full[place.stage], Shape::kQueryBytes + Shape::kRowBytes);
    backward_load<Shape>(tiles + place.stage * Shape::kQueryBytes, map, &full[place.stage],
                         Shape::kQueries, work.sequence.query_first + walk.t * Shape::kQueries,
                         walk.head, batch);
    bulk_load(row_tiles + place.stage * Shape::kQueries, rows + (first + walk.t) * Shape::kQueries,
              Shape::kRowBytes, &full[place.stage]);
    place.advance();
  }
  if (steps != nullptr) {
    mbarrier_wait(&empty[place.stage], place.parity ^ 1, {"a producer", "q_empty"});
    steps[place.stage].t = -1;
    mbarrier_arrive(&full[place.stage]);
  }
}

/// Waits until `turn` has come to `rank`. Lengths that contradict each other could make that never
/// happen: after a while (64 M polls are more than 10 s) it goes on, and says so.
__device__ __forceinline__ void wait_for_turn(const int32_t* turn, int32_t rank, int32_t* status) {
  const cuda::HangGuard guard;
  for (int32_t polls = 0; polls < 1 << 26; ++polls) {
    guard.poll({"the keeper of turns", "the turn of other blocks"}, rank);
    int32_t now;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
    if (now == rank) {
      return;
    }
  }
  if (status != nullptr) {
    *status = 1;
  }
}

__device__ __forceinline__ void end_turn(int32_t* turn) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(turn) : "memory");
}

/// Lets a warpgroup add to its part of a tile of dQ when the tiles of keys before have, and passes
/// the turn on; a thread of its own, so that no consumer waits for a trip to memory.
template <class Shape>
__device__ __forceinline__ void backward_take_turns(const BackwardParams& params,
                                                    const BackwardWork& work,
                                                    BackwardBarriers<Shape>& barriers,
                                                    int32_t group) {
  using namespace cuda;
  uint32_t parity = 0;
  BackwardWalk<Shape> walk;
  for (bool more = walk.start(params, work); more; more = walk.advance(params, work)) {
    const int64_t first = first_place(params.problem, work.sequence, work.batch, walk.head,
                                      params.query_tiles, Shape::kQueries);
    int32_t* turn = params.turns + 2 * (first + walk.t) + group;
    wait_for_turn(turn, backward_rank<Shape>(params, work, walk), params.problem.status);
    mbarrier_arrive(&barriers.turn[group]);
    mbarrier_wait(&barriers.added[group], parity, {"the keeper of turns", "added"});
    __threadfence();
    end_turn(turn);
    parity ^= 1;
  }
}

}  // namespace flashloom::sm90
