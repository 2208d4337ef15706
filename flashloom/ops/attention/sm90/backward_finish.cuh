#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/ops/attention/sm90/backward_places.cuh"
#include "flashloom/ops/attention/sm90/backward_results.cuh"

// How a consumer warpgroup of the backward kernel ends its tile of keys where results leave in
// place.

namespace flashloom::sm90 {

/// Behind the last step: dV leaves through the place of V while the last dQ is computed, dK through
/// the buffer of dQ while the next K and V are on their way, then dQ. `start_queries`,
/// `give_queries`, `store_dk` and `store_dv` are the warpgroup's; the latter two, from registers,
/// for what does not leave through the copy engine.
template <class Shape, class Start, class Give, class StoreKeys, class StoreValues>
__device__ __forceinline__ void finish_in_place(
    const BackwardParams& params, const BackwardWork& work, const BackwardShared<Shape>& shared,
    const BackwardMaps& maps, BackwardPlaces<Shape>& places, int32_t group,
    const float (&dk)[Shape::kDim / 2], const float (&dv)[Shape::kDim / 2],
    float (&dq)[Shape::kQueryColumns / 2], Start&& start_queries, Give&& give_queries,
    StoreKeys&& store_dk, StoreValues&& store_dv) {
  using namespace cuda;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  const auto row_barrier = static_cast<uint32_t>(2 + group);
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x % 128 / 32;
  const uint32_t tile_row = group * 64 + warp * 16;
  const bool packed = params.problem.cu_key != nullptr;
  const Sequence& sequence = work.sequence;
  const int32_t first = work.key + static_cast<int32_t>(tile_row);
  // A vote, so that the compiler knows the warp to be whole behind it.
  const bool sends =
      __any_sync(0xffffffffu, params.sends && (!packed || first + 16 <= sequence.key_rows));
  const int32_t row = sequence.key_first + first;
  const int32_t batch = packed ? 0 : work.batch;
  start_queries();
  named_barrier_sync(row_barrier, 128, {"a consumer", "its warpgroup's last product"});
  if (sends) {
    send_rows<Shape>(dv, 1, &maps.dv, shared.v(), tile_row, row, work.head, batch, lane);
  } else {
    store_dv();
  }
  wgmma_wait<0>();
  wgmma_hold(dq);
  places.give_place_back(&barriers.ds_empty[places.dq_place.stage], lane);
  places.give_place_back(&barriers.k_empty, lane);
  mbarrier_wait(&barriers.sum_empty[group][places.sum_place.stage], places.sum_place.parity ^ 1,
                {"a consumer", "sum_empty"});
  places.take_room_back();
  places.give_place_back(&barriers.v_empty, lane);
  if (sends) {
    static_assert(Shape::kSumBytes >= 64 * Shape::kDim * 2);
    send_rows<Shape, 64>(dk, params.scale, &maps.dk, shared.sum(group, places.sum_place.stage),
                         warp * 16, row, work.head, batch, lane);
  } else {
    store_dk();
  }
  places.take_room_back();
  named_barrier_sync(row_barrier, 128, {"a consumer", "its warpgroup's results"});
  give_queries();
  // Nothing is left to wait for. Without it ptxas takes the warp for divergent in the loop, and
  // brings 50 to 70 words a step over to uniform registers.
  places.take_room_back();
}

}  // namespace flashloom::sm90
