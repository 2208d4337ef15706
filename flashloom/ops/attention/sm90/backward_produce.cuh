#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_counts.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"

// The backward kernel's producer warpgroup, one thread in each of four warps: two stream tiles, two
// add up dQ.

namespace flashloom::sm90 {

template <class Shape>
__device__ __forceinline__ void init_barriers(BackwardBarriers<Shape>& barriers) {
  cuda::mbarrier_init(&barriers.k_full, 1);
  cuda::mbarrier_init(&barriers.v_full, 1);
  if constexpr (Shape::kStays) {
    cuda::mbarrier_init(&barriers.k_empty, 8);
    cuda::mbarrier_init(&barriers.v_empty, 8);
    init_ring(barriers.work_full, barriers.work_empty, 1, 11);
  }
  init_ring(barriers.q_full, barriers.q_empty, 1, 8);
  init_ring(barriers.dout_full, barriers.dout_empty, 1, 8);
  init_ring(barriers.ds_full, barriers.ds_empty, 8, 8);
  init_ring(barriers.sum_full[0], barriers.sum_empty[0], 4, 1);
  init_ring(barriers.sum_full[1], barriers.sum_empty[1], 4, 1);
}

template <class Shape>
__device__ __forceinline__ void backward_load(char* tile, const CUtensorMap* map, uint64_t* full,
                                              int32_t rows, int32_t row, int32_t head,
                                              int32_t batch) {
#pragma unroll
  for (int p = 0; p < Shape::kPanels; ++p) {
    using Panels = typename Shape::Panels;
    cuda::tma_load_4d(tile + p * Panels::bytes(rows), map, full,
                      p * static_cast<int32_t>(Panels::kColumns), row, head, batch,
                      cuda::kEvictLast);
  }
}

/// Begins a step of the walk in a buffer: its tile of q or dout, `bytes` with the rows that follow.
/// `steps` tells the consumers what the tile is, which they find out for themselves where it takes
/// no lists; or null.
template <class Shape>
__device__ __forceinline__ void backward_begin_step(
    const BackwardParams& params, const BackwardWork& work, const BackwardWalk<Shape>& walk,
    const CUtensorMap* map, uint32_t bytes, char* tile, uint64_t* full, BackwardStep* step) {
  if (step != nullptr) {
    *step = walk;
  }
  cuda::mbarrier_arrive_expect(full, bytes);
  backward_load<Shape>(tile, map, full, Shape::kQueries,
                       work.sequence.query_first + walk.t * Shape::kQueries, walk.head,
                       params.problem.cu_query != nullptr ? 0 : work.batch);
}

/// The numbers of a step's rows, lse or delta.
template <class Shape>
__device__ __forceinline__ void backward_load_rows(const BackwardParams& params,
                                                   const BackwardWork& work,
                                                   const BackwardWalk<Shape>& walk,
                                                   const float* rows, float* row_tiles,
                                                   uint64_t* full, uint32_t stage) {
  const int64_t first = first_place(params.problem, work.sequence, work.batch, walk.head,
                                    params.query_tiles, Shape::kQueries);
  cuda::bulk_load(row_tiles + stage * Shape::kQueries, rows + (first + walk.t) * Shape::kQueries,
                  Shape::kRowBytes, full);
}

/// Streams the tiles of q (with lse) or of dout (with delta and, if not null, `more_rows`). `walk`
/// has been started and is at a step if `more`; that step has begun.
template <class Shape>
__device__ __forceinline__ void backward_produce(
    const BackwardParams& params, const BackwardWork& work, BackwardWalk<Shape>& walk, bool more,
    const CUtensorMap* map, const float* rows, const float* more_rows, char* tiles,
    float* row_tiles, uint64_t* full, uint64_t* empty, BackwardStep* steps,
    cuda::PipelineState<Shape::kStages>& place, bool first_begun) {
  using namespace cuda;
  for (bool begun = first_begun; more; more = walk.advance(params, work), begun = false) {
    const int64_t first = first_place(params.problem, work.sequence, work.batch, walk.head,
                                      params.query_tiles, Shape::kQueries);
    if (!begun) {
      mbarrier_wait(&empty[place.stage], place.parity ^ 1, {"a producer", "q_empty or dout_empty"});
      backward_begin_step<Shape>(
          params, work, walk, map,
          Shape::kQueryBytes + (more_rows != nullptr ? 2 : 1) * Shape::kRowBytes,
          tiles + place.stage * Shape::kQueryBytes, &full[place.stage],
          steps != nullptr ? &steps[place.stage] : nullptr);
    }
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

/// Adds a warpgroup's parts of dQ to the sums in memory as they come, so that no consumer waits for
/// memory. Where nothing was cleared, whoever comes first to a part stores. In turn, that is the
/// first tile of keys, and each waits for the one before; else the first that claims the part, and
/// the others wait until it has stored. Where all walk a head's tiles upwards, a part is claimed a
/// step ahead, while the one before it is on its way: the claimer's consumers need nothing but that
/// both threads that add have taken earlier parts, so what waits for what has no circle, and a trip
/// to memory is spared each time nobody came before. How far the next part's sums are is asked
/// while this one's are on their way: in turn an answer that is waited for takes 1,500 of a step's
/// 3,800 cycles at 128 columns, passing the turn on 1,000 and reading a part 1,250. Where turns
/// usually have come by then, it is asked at once, else behind the reading and not waited for: what
/// the answer tells of is acquired by the fence that passes the turn on. `walk` has been started
/// and is at a step if `more`.
template <class Shape>
__device__ __forceinline__ void backward_add(const BackwardParams& params, const BackwardWork& work,
                                             BackwardWalk<Shape>& walk, bool more,
                                             const BackwardShared<Shape>& shared, int32_t group,
                                             cuda::PipelineState<Shape::kSumStages>& place) {
  using namespace cuda;
  constexpr int32_t kClaimed = 1, kStored = 2;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  const bool turns = takes_turns<Shape>(params);
  const bool claims = !turns && params.added != nullptr;
  // Heads and their queries in order, so that a part waits only for parts before it.
  const bool ahead = claims && !params.cyclic && !Shape::kLists;
  uint32_t part = 0;    // of the sums
  int32_t awaited = 0;  // what its count is to be
  int32_t count = 0;    // what it was
  auto find_part = [&] {
    const int64_t first = first_place(params.problem, work.sequence, work.batch, walk.head,
                                      params.query_tiles, Shape::kQueries);
    part = 2 * static_cast<uint32_t>(first + walk.t) + static_cast<uint32_t>(group);
    if (turns) {
      awaited = backward_rank<Shape>(params, work, walk);
    }
  };
  auto ask = [&] {
    if (ahead) {
      count = claim(params.added + part, kClaimed);
    } else if (turns || claims) {
      count = load_acquire(params.added + part);
    }
  };
  if (more) {
    find_part();
    ask();
  }
  while (more) {
    if (turns && count != awaited) {
      wait_for_count(params.added + part, awaited, params.problem.status);
    }
    mbarrier_wait(&barriers.sum_full[group][place.stage], place.parity,
                  {"a thread that adds", "sum_full"});
    bool first = turns && awaited == 0;
    if (claims && count != kStored) {
      // Not before, and given back before the next part is waited for: blocks that wait for their
      // own consumers while others wait for them could wait for each other.
      if (!ahead) {
        count = claim(params.added + part, kClaimed);
      }
      first = count == 0;
      if (count == kClaimed) {
        wait_for_count(params.added + part, kStored, params.problem.status);
      }
    }
    if (turns || claims) {
      // What others' copies wrote comes before what this thread's will.
      fence_async_global();
    }
    const char* from = shared.sum(group, place.stage);
    // The group is in `part`: no register is left for its product.
    float* to = params.dq + int64_t{part / 2} * (Shape::kQueries * Shape::kDim) +
                part % 2 * (Shape::kSumBytes / 4);
    if (first) {  // the sums hold anything
      bulk_store(to, from, Shape::sum_bytes(group));
    } else if (turns) {
      // Copies side by side are done sooner; at 96 columns no register is left for them, and under
      // block masks one was better.
      constexpr uint32_t kCopies = Shape::kHalfRows || Shape::kLists ? 1 : 4;
      const uint32_t bytes = Shape::sum_bytes(group) / kCopies;
#pragma unroll
      for (uint32_t i = 0; i < kCopies; ++i) {
        bulk_reduce_add_f32(to + i * (bytes / 4), from + i * bytes, bytes);
      }
    } else {
      bulk_reduce_add_f32(to, from, Shape::sum_bytes(group));
    }
    bulk_commit();
    const uint32_t before = part;
    auto find_next = [&] {
      more = walk.advance(params, work);
      if (more) {
        find_part();
      }
    };
    const bool finds_early = turns && Shape::kAsksEarly;
    const bool asks_early = finds_early && params.turns_early;
    if (finds_early) {
      find_next();
      if (asks_early && more) {
        ask();
      }
    }
    bulk_wait_read<0>();
    mbarrier_arrive(&barriers.sum_empty[group][place.stage]);
    place.advance();
    if (!finds_early) {
      find_next();
      if (more) {
        ask();
      }
    } else if (!asks_early && more) {
      count = load_relaxed(params.added + part);
    }
    if (turns || first) {
      bulk_wait<0>();
      if (!turns) {
        store_release(params.added + before, kStored);
      } else if (finds_early && !asks_early) {
        add_acquire_release(params.added + before);
      } else {
        add_release(params.added + before);
      }
    }
  }
}

}  // namespace flashloom::sm90
