#pragma once

#include <cuda.h>

#include <algorithm>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/forward_consumer.cuh"
#include "flashloom/ops/attention/sm90/forward_walk.cuh"

namespace flashloom::sm90 {

/// A warp's results on their way to memory: through shared memory and the copy engine, but for rows
/// of a packed sequence that another follows.
template <class Shape>
struct ForwardResults {
  // Results wait in shared memory until the next products run.
  static constexpr bool kLate = ForwardWalk<Shape>::kChained && Shape::kOutPanels == Shape::kPanels;

  using Walk = ForwardWalk<Shape>;

  const ForwardParams& params;
  const CUtensorMap* map;
  uint32_t place;     // of this warp's rows in shared memory
  int32_t owed = -1;  // slot of the tile whose results wait to be sent

  /// Takes the results of the tile in `slot`, after settle().
  __device__ __forceinline__ void take(Walk& walk, ForwardConsumer<Shape>& consumer,
                                       uint32_t slot) {
    if constexpr (kLate) {
      stage_rows<typename Shape::T, 0, Shape::kPanels>(consumer.out, place, Shape::kOutPanelBytes,
                                                       walk.lane);
      owed = static_cast<int32_t>(slot);
    } else {
      send_panels<0>(walk, consumer, walk.barriers.work[slot]);
      walk.release(&walk.barriers.work_empty[slot]);
    }
  }

  /// Sends the results that take() left in shared memory.
  __device__ __forceinline__ void deliver(Walk& walk) {
    if (kLate && owed >= 0) {
      send<0, Shape::kPanels>(walk, walk.barriers.work[owed]);
      walk.release(&walk.barriers.work_empty[owed]);
      owed = -1;
    }
  }

  /// Waits until what this warp sent before has left shared memory.
  __device__ __forceinline__ void settle() {
    cuda::bulk_wait_read<0>();
    __syncwarp();
  }

  template <int kFirst>
  __device__ __forceinline__ void send_panels(Walk& walk, ForwardConsumer<Shape>& consumer,
                                              const ForwardWork& work) {
    if constexpr (kFirst < Shape::kPanels) {
      constexpr int kCount = std::min(Shape::kOutPanels, Shape::kPanels - kFirst);
      if constexpr (kFirst > 0) {
        settle();
      }
      stage_rows<typename Shape::T, kFirst, kCount>(consumer.out, place, Shape::kOutPanelBytes,
                                                    walk.lane);
      send<kFirst, kCount>(walk, work);
      send_panels<kFirst + kCount>(walk, consumer, work);
    }
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void send(Walk& walk, const ForwardWork& work) {
    cuda::fence_async_shared();
    __syncwarp();
    const int32_t first = work.tile.row + walk.warp_row();
    const bool packed = params.problem.cu_query != nullptr;
    if (packed && first + 16 > work.sequence.query_rows) {
      copy_rows<typename Shape::T>(params, work, first, 64 * kFirst, kCount, place,
                                   Shape::kOutPanelBytes, walk.lane);
    } else if (walk.lane == 0) {
      // Read once: a copy keeps the compiler from taking values over from before it.
      const int32_t row = work.sequence.query_first + first;
      const int32_t head = work.tile.head;
      const int32_t batch = packed ? 0 : work.tile.batch;
#pragma unroll
      for (int p = 0; p < kCount; ++p) {
        cuda::tma_store_4d(map, place + p * Shape::kOutPanelBytes, (kFirst + p) * 64, row, head,
                           batch, params.out_hint);
      }
      cuda::bulk_commit();
    }
    __syncwarp();
  }
};

}  // namespace flashloom::sm90
