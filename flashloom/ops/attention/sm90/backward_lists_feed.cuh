#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_aside.cuh"
#include "flashloom/ops/attention/sm90/backward_pieces.cuh"
#include "flashloom/ops/attention/sm90/backward_stay.cuh"

// How the kernel of backward_lists.cuh walks lists and fetches what their steps need.

namespace flashloom::sm90 {

/// With maps of 1 to 5 pieces of q and dout, or of 8 where a tile is a block.
struct BackwardListMaps : BackwardMaps {
  CUtensorMap q_pieces[5], dout_pieces[5];
};

/// The rows of q or dout and the numbers of a step, by a warp whose lanes take a copy each, once
/// their place is given back. What is left behind the last block is nothing: rows behind the end of
/// the tensor, and numbers of a place that belongs to no head.
template <class Shape>
__device__ __forceinline__ void load_pieces(const BackwardListParams& params, int32_t batch,
                                            const volatile BackwardPieces& pieces,
                                            const CUtensorMap* maps, char* tile, const float* rows,
                                            float* row_tile, uint64_t* full, uint64_t* empty,
                                            uint32_t parity) {
  using namespace cuda;
  constexpr int32_t kPieces = Shape::kQueries / kPieceRows;
  const int32_t lane = lane_anew();
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
  // Last: from here on a step's rows are waited for.
  mbarrier_wait(empty, parity, {"a producer", "q_empty or dout_empty"});
  if (lane == 0) {
    mbarrier_arrive_expect(full, Shape::kQueryBytes + Shape::kRowBytes);
  }
  __syncwarp();
  if (count > 0 && panel >= 0 && panel < Shape::kPanels) {
    tma_load_4d(
        tile + panel * panel_bytes(Shape::kQueries) + before * (kPieceRows * kPanelRowBytes),
        maps + (kPieces == 5 ? count - 1 : 0), full, panel * 64, row, head, batch, kEvictLast);
  } else if (count > 0 && panel < 0) {
    bulk_load(row_tile + before * kPieceRows, rows + number,
              static_cast<uint32_t>(count) * (kPieceRows * 4), full);
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
  while (true) {
    if (wait_for_work(shared, own.tiles, "a producer").key < 0) {
      break;
    }
    wait_for_rows(params, shared.work(own.tiles % 2));
    if constexpr (kLeads) {
      let_next_kernel_start();
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
                             &barriers.q_full[stage], &barriers.q_empty[stage], place / 2 % 2 ^ 1);
        }
        if constexpr (!kLeads) {
          const uint32_t place = own.place;
          const uint32_t stage = place % 2;
          load_pieces<Shape>(params, shared.work(own.tiles % 2).batch, ring[place % kRing],
                             maps.dout_pieces, shared.dout(stage), params.delta,
                             shared.delta(stage), &barriers.dout_full[stage],
                             &barriers.dout_empty[stage], place / 2 % 2 ^ 1);
        }
        const uint32_t next = own.place + 1;
        __syncwarp();
        own.place = next;
      }
      const int32_t next = own.steps + 1;
      __syncwarp();
      if constexpr (Shape::kTurns == BackwardTurns::always) {  // no warp is left aside
        if (next == 1) {
          const uint32_t n = own.tiles;
          const BackwardWork& work = shared.work(n % 2);
          uint64_t* full = kLeads ? &barriers.k_full : &barriers.v_full;
          const int32_t panel = lane_anew();
          // 0; else ptxas keeps the address of the maps all along, and spills.
          const int32_t nothing = Shape::kPanels > 1 ? own.steps : 0;
          mbarrier_wait(kLeads ? &barriers.k_empty : &barriers.v_empty, n % 2 ^ 1,
                        {"a producer", "k_empty or v_empty"});
          if (first()) {
            mbarrier_arrive_expect(full, Shape::kKeyBytes);
          }
          __syncwarp();
          if (panel < Shape::kPanels) {
            tma_load_4d((kLeads ? shared.k() : shared.v()) + panel * panel_bytes(Shape::kKeys),
                        (kLeads ? &maps.k : &maps.v) + nothing, full, panel * 64, work.key,
                        work.head, work.batch, kEvictLast);
          }
        }
        __syncwarp();
      }
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

}  // namespace flashloom::sm90
