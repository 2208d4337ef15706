#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_aside.cuh"
#include "flashloom/ops/attention/sm90/backward_lists_feed.cuh"
#include "flashloom/ops/attention/sm90/backward_lists_turn.cuh"
#include "flashloom/ops/attention/sm90/backward_stay.cuh"

// The kernel of backward_stay.cuh for the lists of a block mask. Two warps walk the lists and fetch
// queries' tiles, one thread adds up dQ, and one warp fetches keys and clears the sums of heads to
// come, all in the shade of the tensor cores. In turn (backward_lists_turn.cuh) the latter two add
// up dQ, and keys are fetched by those that walk.

namespace flashloom::sm90 {

/// Waits until the sums of a key-value head are cleared, which blocks do beside earlier tiles of
/// keys, so that they cannot wait for each other in a circle.
__device__ __forceinline__ void wait_for_sums(const BackwardListParams& params, int32_t head) {
  const int32_t jobs =
      min(max((head + 1) * params.jobs_a_head - params.cleared, 0), params.jobs_a_head);
  if (jobs > 0) {
    wait_for_count(params.cleared_jobs + head, jobs, params.problem.status);
    cuda::fence_async_global();
  }
}

/// Begins to add a warpgroup's part of dQ of a step.
template <class Shape>
__device__ __forceinline__ void add_pieces(const BackwardListParams& params, int32_t batch,
                                           const BackwardPieces& pieces, const char* from,
                                           int32_t group) {
#pragma unroll 1
  for (int32_t i = 0; i < 2; ++i) {
    if (const int32_t count = pieces.count[i]; count > 0) {
      const auto bytes =
          Shape::kSumBytes / (Shape::kQueries / kPieceRows) * static_cast<uint32_t>(count);
      cuda::bulk_reduce_add_f32(
          params.dq + sums_at<Shape::kDim>(params, batch * params.problem.heads + pieces.head[i],
                                           pieces.row[i] / kPieceRows, group),
          from, bytes);
      from += bytes;
    }
  }
  cuda::bulk_commit();
}

/// One thread adds up dQ of both warpgroups. A part's buffer is given back when the next part has
/// come, by when it has been read; those of the last two steps, through which results may leave,
/// when they have been read.
template <class Shape>
__device__ __forceinline__ void list_add(const BackwardListParams& params,
                                         const BackwardShared<Shape>& shared) {
  using namespace cuda;
  static_assert(Shape::kSumStages == 1);
  BackwardBarriers<Shape>& barriers = shared.barriers();
  uint32_t place = 0;  // steps of the tiles before
  for (uint32_t n = 0;; ++n) {
    const BackwardWork& work = wait_for_work(shared, n, "a producer");
    if (work.key < 0) {
      break;
    }
    wait_for_rows(params, work);
    wait_for_sums(params, head_of_work(params, work));
    // Read again and again: registers are few.
#pragma unroll 1
    for (int32_t part = 0; part < 2 * work.end; ++part) {
      const int32_t group = part % 2;
      const uint32_t at = place + static_cast<uint32_t>(part) / 2;
      mbarrier_wait(&barriers.sum_full[group][0], at % 2, {"a thread that adds", "sum_full"});
      add_pieces<Shape>(params, work.batch, barriers.pieces[at % 8], shared.sum(group, 0), group);
      if (part > 0 && part + 3 < 2 * work.end) {
        bulk_wait_read<1>();
        mbarrier_arrive(&barriers.sum_empty[group ^ 1][0]);
      }
      if (part + 4 >= 2 * work.end) {
        bulk_wait_read<0>();
        mbarrier_arrive(&barriers.sum_empty[group][0]);
      }
    }
    place += static_cast<uint32_t>(work.end);
    bulk_wait<0>();
    add_release(params.ended + head_of_work(params, work));
    mbarrier_arrive(&barriers.work_empty[n % 2]);
  }
  if (waits_for_all(params)) {
    wait_for_earlier_kernel();
  }
}

/// The last warp.
template <class Shape>
__device__ __forceinline__ void list_aside(const BackwardListParams& params,
                                           const BackwardListMaps& maps,
                                           const BackwardShared<Shape>& shared) {
  using namespace cuda;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  for (uint32_t n = 0;; ++n) {
    const BackwardWork& work = wait_for_work(shared, n, "a producer");
    if (work.key < 0) {
      break;
    }
    if (lane_anew() == 0) {
      // In the order in which they are given back.
      if constexpr (!Shape::kSendsInPlace) {
        backward_load_keys<Shape>(params, work, &maps.v, shared.v(), &barriers.v_full,
                                  &barriers.v_empty, n % 2);
      }
      backward_load_keys<Shape>(params, work, &maps.k, shared.k(), &barriers.k_full,
                                &barriers.k_empty, n % 2);
      if constexpr (Shape::kSendsInPlace) {
        backward_load_keys<Shape>(params, work, &maps.v, shared.v(), &barriers.v_full,
                                  &barriers.v_empty, n % 2);
      }
    }
    __syncwarp();
    wait_for_rows(params, work);
    for (int32_t i = 0; i < params.jobs_a_tile; ++i) {
      const int32_t job = params.cleared + work.first * params.jobs_a_tile + i;
      if (job < params.jobs) {
        clear_sums<Shape::kDim>(params, job, lane_anew(), 32);
        fence_async_global();
        __syncwarp();
        if (lane_anew() == 0) {
          add_release(params.cleared_jobs + job / params.jobs_a_head);
        }
      }
    }
    __syncwarp();
    if (lane_anew() == 0) {
      mbarrier_arrive(&barriers.work_empty[n % 2]);
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward_lists_kernel(const __grid_constant__ BackwardListParams params,
                                    const __grid_constant__ BackwardListMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const BackwardShared<Shape> shared{memory};
  BackwardBarriers<Shape>& barriers = shared.barriers();
  if (threadIdx.x == 0) {
    begin_backward_block(maps, [&] { init_barriers(barriers); });
    shared.work(0) = work_of_lists<Shape>(params, static_cast<int32_t>(blockIdx.x));
    mbarrier_arrive(&barriers.work_full[0]);
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const int32_t warp = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 32), 0);
    if (warp == 0) {
      list_feed<Shape, true>(params, maps, shared);
    } else if (warp == 1) {
      list_feed<Shape, false>(params, maps, shared);
    } else if constexpr (Shape::kTurns == BackwardTurns::always) {
      list_add_in_turn<Shape>(params, shared, warp - 2);
    } else if (warp == 3) {
      list_aside<Shape>(params, maps, shared);
    } else if (threadIdx.x == 64) {
      list_add<Shape>(params, shared);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    backward_consume_all<Shape>(params, maps, shared, warpgroup);
  }
}

}  // namespace flashloom::sm90
