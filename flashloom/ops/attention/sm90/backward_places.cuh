#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_shape.cuh"

// Where a consumer warpgroup of the backward kernel is in the rings, which blocks that stay keep
// from one tile of keys to the next, and whose turn it is.

namespace flashloom::sm90 {

template <class Shape>
struct BackwardPlaces {
  /// A warp alternates with that of the other warpgroup that has the same scheduler: that of the
  /// second one passes the turn on before its first step, that of the first one waits for the
  /// other's last.
  __device__ __forceinline__ void wait_for_turn(int32_t group) {
    if constexpr (Shape::kAlternates) {
      cuda::named_barrier_sync(4 + static_cast<uint32_t>(group) * 4 + threadIdx.x % 128 / 32, 64,
                               {"a consumer", "its turn"});
    }
  }

  __device__ __forceinline__ void pass_turn(int32_t group) {
    if constexpr (Shape::kAlternates) {
      cuda::named_barrier_arrive(4 + static_cast<uint32_t>(group ^ 1) * 4 + threadIdx.x % 128 / 32,
                                 64);
    }
  }

  /// Where blocks stay: the buffer of the next dS, through which results may leave before. A warp
  /// writes both to the same rows.
  __device__ __forceinline__ char* room_for_results(const BackwardShared<Shape>& shared) {
    static_assert(Shape::kScoreBuffers < 4 && Shape::kScoreBytes == 2 * Shape::kKeyBytes);
    cuda::mbarrier_wait(&shared.barriers().ds_empty[ds_place.stage], ds_place.parity ^ 1,
                        {"a consumer", "ds_empty"});
    return shared.ds(ds_place.stage);
  }

  /// The results that this warp sent have been read.
  static __device__ __forceinline__ void take_room_back() {
    cuda::bulk_wait_read<0>();
    __syncwarp();
  }

  /// This warp has read all that it needs of a place.
  static __device__ __forceinline__ void give_place_back(uint64_t* empty, uint32_t lane) {
    __syncwarp();
    if (lane == 0) {
      cuda::mbarrier_arrive(empty);
    }
  }

  cuda::PipelineState<Shape::kStages> place;
  cuda::PipelineState<Shape::kScoreBuffers> ds_place;
  // Of dS whose dQ comes next. Late, that is the step before; the first step computes dQ of what
  // is there, and nobody takes it.
  cuda::PipelineState<Shape::kScoreBuffers> dq_place =
      Shape::kLate ? cuda::PipelineState<Shape::kScoreBuffers>{Shape::kScoreBuffers - 1, 1}
                   : cuda::PipelineState<Shape::kScoreBuffers>{};
  cuda::PipelineState<Shape::kSumStages> sum_place;
};

}  // namespace flashloom::sm90
