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

/// Streams the tiles of q (with lse) or of dout (with delta and, if not null, `more_rows`). `steps`
/// tells the consumers what a tile is, which they find out for themselves where it takes no lists;
/// or null.
template <class Shape>
__device__ __forceinline__ void backward_produce(const BackwardParams& params,
                                                 const BackwardWork& work, const CUtensorMap* map,
                                                 const float* rows, const float* more_rows,
                                                 char* tiles, float* row_tiles, uint64_t* full,
                                                 uint64_t* empty, BackwardStep* steps) {
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
    mbarrier_arrive_expect(&full[place.stage],
                           Shape::kQueryBytes + (more_rows != nullptr ? 2 : 1) * Shape::kRowBytes);
    backward_load<Shape>(tiles + place.stage * Shape::kQueryBytes, map, &full[place.stage],
                         Shape::kQueries, work.sequence.query_first + walk.t * Shape::kQueries,
                         walk.head, batch);
    bulk_load(row_tiles + place.stage * Shape::kQueries, rows + (first + walk.t) * Shape::kQueries,
              Shape::kRowBytes, &full[place.stage]);
    if (more_rows != nullptr) {
      bulk_load(row_tiles + (Shape::kStages + place.stage) * Shape::kQueries,
                more_rows + (first + walk.t) * Shape::kQueries, Shape::kRowBytes,
                &full[place.stage]);
    }
    place.advance();
  }
  if (steps != nullptr) {
    mbarrier_wait(&empty[place.stage], place.parity ^ 1, {"a producer", "q_empty or dout_empty"});
    steps[place.stage].t = -1;
    mbarrier_arrive(&full[place.stage]);
  }
}

__device__ __forceinline__ int32_t load_acquire(const int32_t* place) {
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(place) : "memory");
  return value;
}

__device__ __forceinline__ void add_release(int32_t* place) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(place) : "memory");
}

/// Polls after which a wait is given up: more than 10 s. Lengths that contradict each other could
/// make a turn never come.
inline constexpr int32_t kMostPolls = 1 << 25;

/// Lets a warpgroup add to its part of a tile of dQ when the tiles of keys before have, and passes
/// the turn on; a thread of its own, so that no consumer waits for a trip to memory. It asks for
/// the next turn while the adds of this one run.
template <class Shape>
__device__ __forceinline__ void backward_take_turns(const BackwardParams& params,
                                                    const BackwardWork& work,
                                                    BackwardBarriers<Shape>& barriers,
                                                    int32_t group) {
  using namespace cuda;
  BackwardWalk<Shape> walk;
  bool more = walk.start(params, work);
  // Numbers of turns, not addresses: registers are few.
  uint32_t turn = 0, older = 0, newer = 0;
  int32_t rank = 0;
  uint32_t granted = 0, released = 0;
  int32_t polls = 0;
  cuda::HangGuard guard;  // since the last turn
  auto look_up = [&] {
    const int64_t first = first_place(params.problem, work.sequence, work.batch, walk.head,
                                      params.query_tiles, Shape::kQueries);
    turn = 2 * static_cast<uint32_t>(first + walk.t) + static_cast<uint32_t>(group);
    rank = backward_rank<Shape>(params, work, walk);
  };
  if (more) {
    look_up();
  }
  while (more || released < granted) {
    guard.poll({"the keeper of turns", "the turn of other blocks, or added"}, granted);
    if (more && granted - released < 2) {
      const bool late = ++polls > kMostPolls;
      if (load_acquire(params.turns + turn) == rank || late) {
        if (late && params.problem.status != nullptr) {
          *params.problem.status = 1;
        }
        barriers.first[group][granted % 2] = rank == 0;
        mbarrier_arrive(&barriers.turn[group][granted % 2]);
        (granted == released ? older : newer) = turn;
        ++granted;
        polls = 0;
        guard = cuda::HangGuard();
        more = walk.advance(params, work);
        if (more) {
          look_up();
        }
      }
    }
    if (released < granted &&
        mbarrier_test(&barriers.added[group][released % 2], released / 2 % 2)) {
      // The adds of the warpgroup's threads come before: its arrivals release them to this thread,
      // the fence and this thread's release to the device.
      __threadfence();
      add_release(params.turns + older);
      older = newer;
      ++released;
      guard = cuda::HangGuard();
    }
  }
}

}  // namespace flashloom::sm90
