#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_aside.cuh"
#include "flashloom/ops/attention/sm90/backward_pieces.cuh"
#include "flashloom/ops/attention/sm90/backward_stay.cuh"

// The kernel of backward_stay.cuh for the lists of a block mask. One warp walks the lists and
// fetches everything, one thread adds up dQ, and two warps prepare the rows of heads to come, all
// in the shade of the tensor cores.

namespace flashloom::sm90 {

/// With maps of 1 to 5 pieces of q and dout, or of 8 where a tile is a block.
struct BackwardListMaps : BackwardMaps {
  CUtensorMap q_pieces[5], dout_pieces[5];
};

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

/// The rows of q or dout and the numbers of a step, by a warp whose lanes take a copy each. What is
/// left behind the last block is nothing: rows behind the end of the tensor, and numbers of a place
/// that belongs to no head.
template <class Shape>
__device__ __forceinline__ void load_pieces(const BackwardListParams& params, int32_t batch,
                                            const volatile BackwardPieces& pieces,
                                            const CUtensorMap* maps, char* tile, const float* rows,
                                            float* row_tile, uint64_t* full) {
  using namespace cuda;
  constexpr int32_t kPieces = Shape::kQueries / kPieceRows;
  const int32_t lane = lane_anew();
  if (lane == 0) {
    mbarrier_arrive_expect(full, Shape::kQueryBytes + Shape::kRowBytes);
  }
  __syncwarp();
  // The first block's part, the second one's, and nothing; of each the numbers, then the panels.
  const int32_t run = lane % 3;
  const int32_t panel = lane / 3 - 1;
  const int32_t before = (run > 0 ? pieces.count[0] : 0) + (run > 1 ? pieces.count[1] : 0);
  int32_t count = kPieces - before;
  int32_t row = params.problem.query_length;
  int32_t head = 0;
  auto number = static_cast<uint32_t>(params.jobs) * kPlaceRows;
  if (run < 2) {
    count = pieces.count[run];
    row = pieces.row[run];
    head = pieces.head[run];
    number = static_cast<uint32_t>((batch * params.problem.heads + head) * params.query_tiles) *
                 kPlaceRows +
             static_cast<uint32_t>(row);
  }
  if (count > 0 && panel < 0) {
    bulk_load(row_tile + before * kPieceRows, rows + number,
              static_cast<uint32_t>(count) * (kPieceRows * 4), full);
  } else if (count > 0 && panel < Shape::kPanels) {
    tma_load_4d(
        tile + panel * panel_bytes(Shape::kQueries) + before * (kPieceRows * kPanelRowBytes),
        maps + (kPieces == 5 ? count - 1 : 0), full, panel * 64, row, head, batch, kEvictLast);
  }
  __syncwarp();
}

/// A warp that walks lists: fetches q and lse, tells what it finds to the others and takes the next
/// tile of keys; or fetches dout and delta.
template <class Shape, bool kLeads>
__device__ __forceinline__ void list_feed(const BackwardListParams& params,
                                          const BackwardListMaps& maps,
                                          const BackwardShared<Shape>& shared) {
  using namespace cuda;
  constexpr uint32_t kRing = kLeads ? 8 : 4;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  BackwardPieces* ring = kLeads ? barriers.pieces : barriers.dout_pieces;
  volatile BackwardLead& own = barriers.lead[kLeads ? 0 : 1];
  auto first = [] { return lane_anew() == 0; };  // worked out again: registers are few
  if (first()) {
    own.tiles = 0;
    own.place = 0;
  }
  __syncwarp();
  wait_for_earlier_kernel();
  if constexpr (kLeads) {
    let_next_kernel_start();
  }
  while (true) {
    if (wait_for_work(shared, own.tiles, "a producer").key < 0) {
      break;
    }
    own.steps = 0;
    __syncwarp();
    do {
      if (own.steps % kFoundSteps == 0) {
        // Of eight, those before the last four: their dQ has come.
        const BackwardWork& work = shared.work(own.tiles % 2);
        const int32_t lane = lane_anew();
        const int32_t step = own.steps + lane;
        if (lane < kFoundSteps && step < work.end) {
          find_pieces<Shape>(params, work, step,
                             ring[(own.place + static_cast<uint32_t>(lane)) % kRing]);
        }
        __syncwarp();
      }
      if (shared.work(own.tiles % 2).end > 0) {
        if constexpr (kLeads) {
          const uint32_t place = own.place;
          const uint32_t stage = place % 2;
          const volatile BackwardPieces& pieces = ring[place % kRing];
          mbarrier_wait(&barriers.q_empty[stage], place / 2 % 2 ^ 1, {"a producer", "q_empty"});
          if (params.blocks.partial.data != nullptr && first()) {
            volatile BackwardHidden& hidden = barriers.hidden[place % 4];
            hidden.count = pieces.count[0];
            hidden.row[0] = pieces.row[0];
            hidden.row[1] = pieces.row[1];
            hidden.partial[0] = pieces.partial[0];
            hidden.partial[1] = pieces.partial[1];
          }
          load_pieces<Shape>(params, shared.work(own.tiles % 2).batch, pieces, maps.q_pieces,
                             shared.q(stage), params.lse, shared.lse(stage),
                             &barriers.q_full[stage]);
        }
        if constexpr (!kLeads) {
          const uint32_t place = own.place;
          const uint32_t stage = place % 2;
          mbarrier_wait(&barriers.dout_empty[stage], place / 2 % 2 ^ 1,
                        {"a producer", "dout_empty"});
          load_pieces<Shape>(params, shared.work(own.tiles % 2).batch, ring[place % kRing],
                             maps.dout_pieces, shared.dout(stage), params.delta,
                             shared.delta(stage), &barriers.dout_full[stage]);
        }
        const uint32_t next = own.place + 1;
        __syncwarp();
        own.place = next;
      }
      const int32_t next = own.steps + 1;
      __syncwarp();
      own.steps = next;
      __syncwarp();
    } while (own.steps < shared.work(own.tiles % 2).end);
    const uint32_t next = own.tiles + 1;
    __syncwarp();
    if (first()) {
      own.tiles = next;
      if constexpr (kLeads) {
        const auto index = atomicAdd(params.next, 1);
        mbarrier_wait(&barriers.work_empty[next % 2], next / 2 % 2 ^ 1,
                      {"a producer", "work_empty"});
        uint64_t* full = &barriers.work_full[next % 2];
        if (index < params.work_count) {
          mbarrier_arrive_expect(full, sizeof(BackwardWork));
          bulk_load(&shared.work(next % 2), params.works + index, sizeof(BackwardWork), full);
        } else {
          shared.work(next % 2).key = -1;
          mbarrier_arrive(full);
        }
      } else {
        mbarrier_arrive(&barriers.work_empty[(next - 1) % 2]);
      }
    }
    __syncwarp();
  }
}

/// One thread adds up dQ of both warpgroups.
template <class Shape>
__device__ __forceinline__ void list_add(const BackwardListParams& params,
                                         const BackwardShared<Shape>& shared) {
  using namespace cuda;
  static_assert(Shape::kSumStages == 1);
  BackwardBarriers<Shape>& barriers = shared.barriers();
  wait_for_earlier_kernel();
  uint32_t place = 0;  // steps in all
  for (uint32_t n = 0;; ++n) {
    const BackwardWork& work = wait_for_work(shared, n, "a producer");
    if (work.key < 0) {
      break;
    }
    wait_for_sums(params, head_of_work(params, work));
#pragma unroll 1
    for (int32_t step = 0; step < work.end; ++step, ++place) {
#pragma unroll 1
      for (int32_t group = 0; group < 2; ++group) {
        mbarrier_wait(&barriers.sum_full[group][0], place % 2, {"a thread that adds", "sum_full"});
        const BackwardPieces& pieces = barriers.pieces[place % 8];
        const char* from = shared.sum(group, 0);
#pragma unroll 1
        for (int32_t i = 0; i < 2; ++i) {
          if (const int32_t count = pieces.count[i]; count > 0) {
            const auto bytes =
                Shape::kSumBytes / (Shape::kQueries / kPieceRows) * static_cast<uint32_t>(count);
            bulk_reduce_add_f32(
                params.dq + sums_at<Shape::kDim>(params,
                                                 work.batch * params.problem.heads + pieces.head[i],
                                                 pieces.row[i] / kPieceRows, group),
                from, bytes);
            from += bytes;
          }
        }
        bulk_commit();
        // One's part is read while the other's comes.
        bulk_wait_read<1>();
        if (group != 0 || step != 0) {
          mbarrier_arrive(&barriers.sum_empty[group ^ 1][0]);
        }
      }
    }
    bulk_wait_read<0>();
    if (work.end != 0) {
      mbarrier_arrive(&barriers.sum_empty[1][0]);
    }
    bulk_wait<0>();
    add_release(params.ended + head_of_work(params, work));
    mbarrier_arrive(&barriers.work_empty[n % 2]);
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
      backward_load_keys<Shape>(params, work, &maps.v, shared.v(), &barriers.v_full,
                                &barriers.v_empty, n % 2);
      backward_load_keys<Shape>(params, work, &maps.k, shared.k(), &barriers.k_full,
                                &barriers.k_empty, n % 2);
    }
    __syncwarp();
    wait_for_earlier_kernel();  // at the first tile
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

/// A consumer warpgroup.
template <class Shape>
__device__ __forceinline__ void list_consume(const BackwardListParams& params,
                                             const BackwardListMaps& maps,
                                             const BackwardShared<Shape>& shared, int32_t group) {
  using namespace cuda;
  BackwardConsumer<Shape> consumer;
  float dk[Shape::kDim / 2], dv[Shape::kDim / 2];
  if (group == 1) {
    consumer.pass_turn(1);
  }
  for (uint32_t n = 0;; ++n) {
    const BackwardWork& work = wait_for_work(shared, n, "a consumer");
    if (work.key < 0) {
      break;
    }
    consumer.run(params, work, shared, group, n % 2, dk, dv, maps);
    if constexpr (Shape::kSends) {
      char* room = consumer.room_for_results(shared);
      store_results<Shape>(params, maps, work, group, room, room + Shape::kKeyBytes, dk, dv);
    }
    consumer.give_place_back(&shared.barriers().work_empty[n % 2], threadIdx.x % 32);
  }
  consumer.take_room_back();
  if (group == 0) {
    consumer.wait_for_turn(0);
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
    } else if (warp == 3) {
      list_aside<Shape>(params, maps, shared);
    } else if (threadIdx.x == 64) {
      list_add<Shape>(params, shared);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    list_consume<Shape>(params, maps, shared, warpgroup - 1);
  }
}

}  // namespace flashloom::sm90
