#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/forward_band_rows.cuh"

// A consumer warp's way through tiles of queries, keys and values: waits, results, turns.

namespace flashloom::sm90 {

/// A consumer warp's way through the ring of pairs of keys and values: it waits for every pair and
/// gives it back once, whether it needs it or not, so that no phase of a barrier passes unseen.
template <int kStages>
struct ForwardBandRing {
  uint64_t *full, *empty;
  uint32_t lane;
  uint32_t seen = 0;                                  // tiles waited for
  uint32_t returned = 0;                              // tiles given back
  cuda::PipelineState<kStages> next = {}, held = {};  // where those behind them are

  /// The place of the `count`th before the next tile to wait for.
  __device__ __forceinline__ uint32_t stage_before(uint32_t count) const {
    return next.stage < count ? next.stage + kStages - count : next.stage - count;
  }

  /// Waits for the tiles before `end`.
  __device__ __forceinline__ void see(uint32_t end) {
#pragma unroll 1
    for (; seen < end; ++seen) {
      cuda::mbarrier_wait(&full[next.stage], next.parity, {"a consumer", "full"});
      next.advance();
    }
  }

  /// Gives back the tiles before `end`, which have been seen. The warp has converged.
  __device__ __forceinline__ void give_back(uint32_t end) {
#pragma unroll 1
    for (; returned < end; ++returned) {
      if (lane == 0) {
        cuda::mbarrier_arrive(&empty[held.stage]);
      }
      held.advance();
    }
  }

  /// Tiles before `end` that only others need.
  __device__ __forceinline__ void pass(uint32_t end) {
    see(end);
    __syncwarp();
    give_back(end);
  }
};

template <class Shape>
struct ForwardBandConsumer {
  using Rows = ForwardBandRows<Shape>;

  const ForwardBandParams& params;
  const CUtensorMap* map;
  const ForwardBandShared<Shape>& shared;
  ForwardBandBarriers<Shape>& barriers;
  Rows own;
  ForwardBandRing<Shape::kStages> pairs;
  cuda::PipelineState<Shape::kQStages> q_place = {};
  int32_t owed = -1;  // buffer of queries from which results are being sent

  __device__ __forceinline__ ForwardBandConsumer(const ForwardBandParams& of,
                                                 const CUtensorMap* out,
                                                 const ForwardBandShared<Shape>& memory)
      : params(of),
        map(out),
        shared(memory),
        barriers(memory.barriers()),
        own{threadIdx.x % 32,
            __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x % 128 / 32 * 16), 0)},
        pairs{barriers.full, barriers.empty, own.lane} {}

  /// Gives the buffer of the last results back once they have left.
  __device__ __forceinline__ void settle() {
    if (owed >= 0 && own.lane == 0) {
      cuda::bulk_wait_read<0>();
      cuda::mbarrier_arrive(&barriers.q_empty[owed]);
    }
    owed = -1;
  }

  /// The item `item` of a segment; of its tiles of keys the first is the block's `key`th.
  __device__ __forceinline__ void run_item(const ForwardBandSegment& segment, int32_t item,
                                           uint32_t key) {
    using namespace cuda;
    const int32_t group = params.forward.problem.heads_per_key;
    const int32_t tile = params.tile_of(item);
    const Sequence& sequence = segment.sequence;
    const int32_t row = tile * Shape::kTile;
    const int32_t own_row = row + own.warp_row + static_cast<int32_t>(own.lane / 4);
    pairs.pass(key);
    const uint32_t stage = q_place.stage;
    mbarrier_wait(&barriers.q_full[stage], q_place.parity, {"a consumer", "q_full"});
    q_place.stage += Shape::kGroups;
    if (q_place.stage >= Shape::kQStages) {
      q_place.stage -= Shape::kQStages;
      q_place.parity ^= 1;
    }
    char* queries = shared.queries(stage);
    uint32_t q[4 * Rows::kSteps];
    own.load_queries(q, queries);
    settle();
    pairs.see(key + kBandReach);

    uint32_t keys[kBandReach];  // the last that were waited for
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      keys[i] = shared_address(shared.keys(pairs.stage_before(kBandReach - i)));
    }
    float scores[Rows::kScores];
    own.find_scores(scores, q, keys);
    own.hide(scores, sequence, row + own.warp_row,
             (tile + params.shift) * Shape::kTile + own.warp_row);
    float maximum[2], sum[2], shift[2];
    Rows::find_maximum(scores, maximum);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      shift[half] = maximum[half] == -INFINITY ? 0 : maximum[half] * params.forward.scale_log2;
      sum[half] = 0;
    }
    float out[Shape::kDim / 2];
#pragma unroll
    for (float& value : out) {
      value = 0;
    }
    own.add_weighted(scores, keys, params.forward.scale_log2, shift, sum, out);
    ForwardWork work = {};
    const int32_t head = item - tile * group;
    work.tile = {segment.batch, segment.head * group + head, row};
    work.sequence = sequence;
    work.lse = segment.lse + head * params.forward.lse_head;
    float inverse[2];
    finish_rows<false>(params.forward, work, own_row, own.lane, maximum, sum, inverse);
    __syncwarp();
    // Up to the first tile of the next item's keys; another segment needs none of these.
    const int32_t following = item + Shape::kGroups;
    pairs.give_back(key +
                    static_cast<uint32_t>(following < segment.end
                                              ? min(params.tile_of(following) - tile, kBandReach)
                                              : kBandReach));
    clear_empty(out, inverse);
    rescale_rows(out, inverse);
    send(out, work, queries, stage);
  }

  /// Results leave from the place of the queries: the warp has read its rows.
  __device__ __forceinline__ void send(const float (&out)[Shape::kDim / 2], const ForwardWork& work,
                                       char* queries, uint32_t stage) {
    using namespace cuda;
    constexpr uint32_t kPanel = panel_bytes(Shape::kTile);
    const uint32_t place =
        shared_address(queries) + static_cast<uint32_t>(own.warp_row) * kPanelRowBytes;
    stage_rows<typename Shape::T, 0, Shape::kPanels>(out, place, kPanel, own.lane);
    fence_async_shared();
    __syncwarp();
    const int32_t first = work.tile.row + own.warp_row;
    const bool packed = params.forward.problem.cu_query != nullptr;
    if (packed && first + 16 > work.sequence.query_rows) {
      copy_rows<typename Shape::T>(params.forward, work, first, 0, Shape::kPanels, place, kPanel,
                                   own.lane);
    } else if (own.lane == 0) {
#pragma unroll
      for (int p = 0; p < Shape::kPanels; ++p) {
        tma_store_4d(map, place + p * kPanel, p * 64, work.sequence.query_first + first,
                     work.tile.head, packed ? 0 : work.tile.batch);
      }
      bulk_commit();
    }
    __syncwarp();
    owed = static_cast<int32_t>(stage);
  }

  /// Every kGroups-th item, from `number` on.
  __device__ __forceinline__ void run(uint32_t number) {
    // Shuffles tell the compiler that warps do not diverge on these.
    const auto uniform = [](auto value) { return __shfl_sync(0xffffffffu, value, 0); };
    q_place.stage = number;
    for (ForwardBandWalk walk;; walk.slot.advance()) {
      const ForwardBandSegment& segment = walk.wait(barriers, "a consumer");
      const int32_t first = uniform(segment.first);
      const int32_t end = uniform(segment.end);
      if (first == end) {
        pairs.pass(segment.key_number);
        return;
      }
      // From an item's number among the block's to its own, and from a tile to that of its keys.
      const int32_t to_item = first - static_cast<int32_t>(uniform(segment.number));
      const uint32_t to_key =
          uniform(segment.key_number) - static_cast<uint32_t>(params.tile_of(first));
      for (int32_t item; (item = static_cast<int32_t>(number) + to_item) < end;
           number += Shape::kGroups) {
        run_item(segment, item, to_key + static_cast<uint32_t>(params.tile_of(item)));
      }
      __syncwarp();
      if (own.lane == 0) {
        walk.release(barriers);
      }
    }
  }
};

}  // namespace flashloom::sm90
