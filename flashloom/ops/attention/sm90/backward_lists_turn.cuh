#pragma once

#include <cstdint>

#include "flashloom/cuda/debug.cuh"
#include "flashloom/ops/attention/sm90/backward_aside.cuh"
#include "flashloom/ops/attention/sm90/backward_stay.cuh"

// How the kernel of backward_lists.cuh adds up dQ in turn.

namespace flashloom::sm90 {

/// A warp adds up dQ of a warpgroup. Each piece of a part has a turn of its own
/// (at 64 columns a part is one), a lane a piece, so that those of a step's first block need not
/// wait for the second one's. Whoever comes first stores, so that nothing is cleared. Turns come in
/// the order in which tiles of keys are drawn, so that a tile waits for such alone as have been
/// drawn before: the first that is not done waits for none.
template <class Shape>
__device__ __forceinline__ void list_add_in_turn(const BackwardListParams& params,
                                                 const BackwardShared<Shape>& shared,
                                                 int32_t group) {
  using namespace cuda;
  static_assert(Shape::kSumStages == 1);
  constexpr bool kWhole = Shape::kDim == 64;
  constexpr int32_t kRows = kWhole ? kPlaceRows : kPieceRows;
  constexpr int32_t kLanes = Shape::kQueries / kRows;
  constexpr uint32_t kBytes = Shape::kSumBytes / kLanes;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  volatile BackwardLead& own = barriers.lead[2 + group];
  uint32_t place = 0;  // of the step among those of all tiles
  if (lane_anew() == 0) {
    own.tiles = 0;
  }
  __syncwarp();
  // Of this lane's piece: where its sum is, how many add before, how many have.
  uint32_t sum = 0;
  int32_t awaited = 0, count = 0;
  bool pending = false;
  while (true) {
    if (wait_for_work(shared, own.tiles, "a producer").key < 0) {
      break;
    }
    wait_for_rows(params, shared.work(own.tiles % 2));
    auto look_up = [&](uint32_t at) {
      const volatile BackwardPieces& pieces = barriers.pieces[at % 8];
      const int32_t lane = lane_anew();
      const int32_t first = kWhole ? 1 : pieces.count[0];
      const int32_t run = lane < first ? 0 : 1;
      const int32_t piece = lane - (run != 0 ? first : 0);
      pending = lane < kLanes && piece < (kWhole ? 1 : pieces.count[run]);
      if (pending) {
        const int32_t head =
            shared.work(own.tiles % 2).batch * params.problem.heads + pieces.head[run];
        const int32_t row = pieces.row[run] / kRows + piece;
        sum = static_cast<uint32_t>(kWhole ? 2 * (head * params.query_tiles + row) + group
                                           : (2 * head + group) * head_pieces(params) + row);
        const int32_t rank = pieces.rank[run];
        awaited = rank / kSumCopies;
        sum += static_cast<uint32_t>(rank % kSumCopies * params.counts_a_copy);
        count = load_acquire(params.added + sum);
      }
    };
#pragma unroll 1
    for (int32_t left = shared.work(own.tiles % 2).end; left > 0; --left, ++place) {
      // Turns are asked for before the part is there; of a tile's first step, once it is known.
      bool here = false;
      if (left == shared.work(own.tiles % 2).end) {
        mbarrier_wait(&barriers.sum_full[group][0], place % 2, {"a thread that adds", "sum_full"});
      }
      look_up(place);
      bool passes = false;
      const HangGuard guard;
      int32_t polls = 0;
      while (true) {
        here =
            here || __all_sync(0xffffffffu, mbarrier_test(&barriers.sum_full[group][0], place % 2));
        if (here && pending && count == awaited) {
          // What others' copies wrote comes before what this one's will.
          fence_async_global();
          float* to = params.dq + int64_t{sum} * (kBytes / 4);
          const char* from = shared.sum(group, 0) + static_cast<uint32_t>(lane_anew()) * kBytes;
          if (awaited == 0) {
            bulk_store(to, from, kBytes);
          } else {
            bulk_reduce_add_f32(to, from, kBytes);
          }
          bulk_commit();
          pending = false;
          passes = true;
        }
        if (here && !__any_sync(0xffffffffu, pending)) {
          break;
        }
        bool waits = pending && count != awaited;
        if (!__any_sync(0xffffffffu, waits)) {
          mbarrier_wait(&barriers.sum_full[group][0], place % 2,
                        {"a thread that adds", "sum_full"});
          here = true;
          continue;
        }
        if (waits) {
          guard.poll({"a thread that adds", "other blocks"}, static_cast<uint32_t>(awaited));
          if (++polls > kMostPolls) {
            if (params.problem.status != nullptr) {
              *params.problem.status = 1;
            }
            awaited = count;
          }
          count = load_acquire(params.added + sum);
          waits = count != awaited;
        }
        // Asked in vain: meanwhile what has been added is passed on.
        if (!kWhole && __any_sync(0xffffffffu, waits) && passes) {
          bulk_wait<0>();
          add_release(params.added + sum);
          passes = false;
        }
        __syncwarp();
      }
      bulk_wait_read<0>();
      __syncwarp();
      if (lane_anew() == 0) {
        mbarrier_arrive(&barriers.sum_empty[group][0]);
      }
      if (passes) {
        bulk_wait<0>();
        add_release(params.added + sum);
      }
      __syncwarp();
    }
    if (lane_anew() == 0) {
      add_release(params.ended + head_of_work(params, shared.work(own.tiles % 2)));
      const uint32_t n = own.tiles;
      mbarrier_arrive(&barriers.work_empty[n % 2]);
      own.tiles = n + 1;
    }
    __syncwarp();
  }
  if (waits_for_all(params)) {
    wait_for_earlier_kernel();
  }
}

}  // namespace flashloom::sm90
