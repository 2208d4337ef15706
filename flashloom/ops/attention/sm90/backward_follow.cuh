#pragma once

#include <cstdint>
#include <type_traits>

#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/sm90/backward_pieces.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"

// How a consumer warpgroup of the backward kernel follows the rings of Q and dO.

namespace flashloom::sm90 {

template <class Shape>
struct BackwardFollower {
  using Panels = typename Shape::Panels;
  using Walk = std::conditional_t<
      Shape::kPieces, BackwardLeft,
      std::conditional_t<Shape::kStays, BackwardCount<Shape>, BackwardWalk<Shape>>>;
  static constexpr int kQueries = Shape::kQueries;

  const BackwardParams& params;
  const BackwardWork& work;
  const BackwardShared<Shape>& shared;
  cuda::PipelineState<Shape::kStages>& place;
  const uint32_t lane;
  const uint32_t row_barrier;  // of this warpgroup
  Walk walk = {};
  bool more = false;  // whether there is a step
  int32_t tail = -1;

  /// The first step, of a tile of keys that has come.
  __device__ __forceinline__ void start() {
    if constexpr (Shape::kTold) {
      cuda::mbarrier_wait(&shared.barriers().q_full[0], 0, {"a consumer", "q_full"});
      more = shared.barriers().steps[0].t >= 0;
    } else {
      walk.start(params, work);
    }
  }

  /// Finds the tile whose last rows are not this sequence's, if any holds something else than
  /// zeros.
  __device__ __forceinline__ void find_tail() {
    const Problem& problem = params.problem;
    const int32_t length = work.sequence.query_length;
    const bool others =
        !Shape::kPieces && (problem.cu_query != nullptr || problem.used_query != nullptr);
    tail = others && length % kQueries != 0 ? length / kQueries : -1;
  }

  __device__ __forceinline__ BackwardStep step_at(uint32_t stage) const {
    if constexpr (Shape::kTold) {
      return shared.barriers().steps[stage];
    } else {
      return walk;
    }
  }

  __device__ __forceinline__ void wait_for_queries() const {
    wait_for(&shared.barriers().q_full[place.stage], shared.q(place.stage), step_at(place.stage).t);
  }

  __device__ __forceinline__ void wait_for_values() const {
    if (more) {
      wait_for(&shared.barriers().dout_full[place.stage], shared.dout(place.stage),
               step_at(place.stage).t);
    }
  }

  /// The next step, whose tile of queries has come.
  __device__ __forceinline__ void next() {
    place.advance();
    if constexpr (Shape::kTold) {
      cuda::mbarrier_wait(&shared.barriers().q_full[place.stage], place.parity,
                          {"a consumer", "q_full"});
      more = step_at(place.stage).t >= 0;
    } else {
      more = walk.advance(params, work);
    }
    if (more) {
      wait_for_queries();
    }
  }

  __device__ __forceinline__ void release_values(uint32_t stage) const {
    if (lane == 0) {
      cuda::mbarrier_arrive(&shared.barriers().dout_empty[stage]);
    }
  }

  __device__ __forceinline__ void release_queries(uint32_t stage) const {
    if constexpr (Shape::kLists) {
      __syncwarp();  // all lanes have read the step
    }
    if (lane == 0) {
      cuda::mbarrier_arrive(&shared.barriers().q_empty[stage]);
    }
  }

  /// Gives the first step back as soon as it has come, so that no later wait takes its turn of the
  /// ring for its own, and goes on to the second one.
  __device__ __forceinline__ void pass() {
    const uint32_t stage = place.stage;
    BackwardBarriers<Shape>& barriers = shared.barriers();
    cuda::mbarrier_wait(&barriers.q_full[stage], place.parity, {"a consumer", "q_full"});
    cuda::mbarrier_wait(&barriers.dout_full[stage], place.parity, {"a consumer", "dout_full"});
    __syncwarp();
    release_values(stage);
    release_queries(stage);
    place.advance();
    walk.advance(params, work);
  }

 private:
  __device__ __forceinline__ void wait_for(uint64_t* full, char* tile, int32_t t) const {
    cuda::mbarrier_wait(full, place.parity, {"a consumer", "q_full or dout_full"});
    if (t == tail) {
      zero_rows<Shape::kPanels, Panels, Shape::kStays>(tile, work.sequence.query_length % kQueries,
                                                       kQueries, row_barrier);
    }
  }
};

}  // namespace flashloom::sm90
