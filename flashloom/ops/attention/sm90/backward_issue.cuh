#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/sm90/backward_places.cuh"
#include "flashloom/ops/attention/sm90/backward_tile.cuh"

// The products of a step of the backward kernel between a consumer warpgroup's registers and the
// tiles in shared memory, each issued and not waited for, and the ways of dS and dQ.

namespace flashloom::sm90 {

template <class Shape>
struct BackwardIssue {
  using Tile = BackwardTile<Shape>;
  using T = typename Shape::T;
  using Panels = typename Tile::Panels;
  static constexpr int kDim = Shape::kDim;
  static constexpr int kScores = Tile::kScores;

  const BackwardShared<Shape>& shared;
  BackwardPlaces<Shape>& places;
  const int32_t group;
  const uint32_t thread, lane, warp;
  const uint32_t own_k, own_v;  // addresses of this warpgroup's rows
  const uint32_t dq_k, dq_ds;   // of its part of dQ: of K, and what is added to that of dS
  float (&scores)[kScores];
  float (&dp)[kScores];
  float (&dq)[Tile::kSums];
  uint32_t (&weights)[kScores / 2];
  uint32_t (&ds)[kScores / 2];
  float (&dk)[kDim / 2];
  float (&dv)[kDim / 2];
  uint32_t (&own_values)[kDim / 16][4];  // V, where it is an operand from registers
  bool& given;                           // whether this step has a dQ to give

  __device__ __forceinline__ void start_scores() const {
    using namespace cuda;
    wgmma_hold(scores);
    wgmma_fence();
    Tile::issue_scores(scores, own_k, shared_address(shared.q(places.place.stage)));
  }

  __device__ __forceinline__ void start_dp(uint32_t stage) const {
    using namespace cuda;
    wgmma_hold(dp);
    wgmma_fence();
    const uint32_t dout = shared_address(shared.dout(stage));
    if constexpr (Shape::kHoldsValues) {
      issue_registers_by_rows<T, kDim, Shape::kQueries, Panels>(dp, own_values, dout);
    } else {
      Tile::issue_values(dp, own_v, dout);
    }
  }

  __device__ __forceinline__ void start_keys(uint32_t stage) const {
    using namespace cuda;
    wgmma_hold(ds);
    wgmma_hold(dk);
    wgmma_fence();
    Tile::issue_keys(dk, ds, shared_address(shared.q(stage)));
  }

  __device__ __forceinline__ void start_values(uint32_t stage) const {
    using namespace cuda;
    wgmma_hold(weights);
    wgmma_hold(dv);
    wgmma_fence();
    Tile::issue_keys(dv, weights, shared_address(shared.dout(stage)));
  }

  __device__ __forceinline__ void start_queries() const {
    using namespace cuda;
    if constexpr (Shape::kLate) {
      mbarrier_wait(&shared.barriers().ds_full[places.dq_place.stage], places.dq_place.parity,
                    {"a consumer", "ds_full"});
    } else {
      fence_async_shared();
      named_barrier_sync(1, 256, {"a consumer", "the other's dS"});
    }
    wgmma_hold(dq);
    wgmma_fence();
    const uint32_t from = Shape::kLate ? places.dq_place.stage : places.ds_place.stage ^ 1;
    Tile::issue_queries(dq, shared_address(shared.ds(from)) + dq_ds, dq_k);
  }

  __device__ __forceinline__ void give_queries() const {
    if (given) {
      Tile::give(dq, shared, group, places.sum_place, thread);
      places.sum_place.advance();
    }
  }

  /// dS for both warpgroups.
  __device__ __forceinline__ void store_ds() const {
    using namespace cuda;
    if constexpr (Shape::kLate) {
      mbarrier_wait(&shared.barriers().ds_empty[places.ds_place.stage], places.ds_place.parity ^ 1,
                    {"a consumer", "ds_empty"});
    }
    // Lane l of stmatrix: row l % 16, columns 8 (l / 16).
    const uint32_t row = group * 64 + warp * 16 + lane % 16;
    Tile::store_gradients(ds, shared_address(shared.ds(places.ds_place.stage)), row, lane);
  }

  __device__ __forceinline__ void tell_ds() const {
    if constexpr (Shape::kLate) {
      cuda::fence_async_shared();
      __syncwarp();
      if (lane == 0) {
        cuda::mbarrier_arrive(&shared.barriers().ds_full[places.ds_place.stage]);
      }
    }
    places.ds_place.advance();
  }

  /// Instead of a first step that hides all from these keys: their dS is 0, which dQ of both
  /// warpgroups needs, and nothing else comes of it.
  __device__ __forceinline__ void pass_ds() const {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      ds[i] = 0;
    }
    store_ds();
    tell_ds();
    places.dq_place.advance();
    given = true;
  }
};

}  // namespace flashloom::sm90
