#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_band_shape.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"

// The producers of the backward kernel for narrow bands: two threads stream tiles, a warp computes
// lse and delta of their rows.

namespace flashloom::sm90 {

/// One thread streams the tiles of q and dout, k and v.
template <class Shape>
__device__ __forceinline__ void band_load(const BandParams& params, const BandShared<Shape>& shared,
                                          const BackwardMaps& maps) {
  using namespace cuda;
  BandWork& work = shared.work(BandRole::loads);
  BandBarriers<Shape>& barriers = shared.barriers();
  PipelineState<Shape::kQueryStages> query_place;
  PipelineState<Shape::kKeyStages> key_place;
  const auto load = [&](char* pair, uint64_t* full, const CUtensorMap& first,
                        const CUtensorMap& second, int32_t row) {
    mbarrier_arrive_expect(full, 2 * Shape::kTileBytes);
    const int32_t batch = work.tensor_batch(params);
    tma_load_4d(pair, &first, full, 0, row, work.head, batch);
    tma_load_4d(pair + Shape::kTileBytes, &second, full, 0, row, work.head, batch);
  };
  do {
    for (int32_t tile = work.low; tile < work.high; ++tile) {
      mbarrier_wait(&barriers.q_empty[query_place.stage], query_place.parity ^ 1,
                    {"the producer", "q_empty"});
      load(shared.queries(query_place.stage), &barriers.q_full[query_place.stage], maps.q,
           maps.dout, work.sequence.query_first + tile * 64);
      query_place.advance();
      mbarrier_wait(&barriers.k_empty[key_place.stage], key_place.parity ^ 1,
                    {"the producer", "k_empty"});
      load(shared.keys(key_place.stage), &barriers.k_full[key_place.stage], maps.k, maps.v,
           work.sequence.key_first + tile * 64);
      key_place.advance();
    }
  } while (next_sequence<Shape>(params, work, true, [] {}));
}

/// One thread streams `out`, half a tile at a time.
template <class Shape>
__device__ __forceinline__ void band_load_out(const BandParams& params,
                                              const BandShared<Shape>& shared) {
  using namespace cuda;
  BandWork& work = shared.work(BandRole::loads_out);
  BandBarriers<Shape>& barriers = shared.barriers();
  uint32_t parity = 1;
  do {
    for (int32_t half = 2 * work.low; half < 2 * work.high; ++half) {
      mbarrier_wait(&barriers.out_empty, parity, {"the producer of out", "out_empty"});
      parity ^= 1;
      mbarrier_arrive_expect(&barriers.out_full, Shape::kTileBytes / 2);
      tma_load_4d(shared.out(), &params.out, &barriers.out_full, 0,
                  work.sequence.query_first + half * 32, work.head, work.tensor_batch(params));
    }
  } while (next_sequence<Shape>(params, work, true, [] {}));
}

/// A warp computes lse in powers of two and delta = sum(dout * out) - dlse, a row a lane.
template <class Shape>
__device__ __forceinline__ void band_rows(const BandParams& params,
                                          const BandShared<Shape>& shared) {
  using namespace cuda;
  using T = typename Shape::T;
  BandWork& work = shared.work(BandRole::rows);
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const uint32_t out = shared_address(shared.out());
  BandBarriers<Shape>& barriers = shared.barriers();
  PipelineState<Shape::kQueryStages> place;
  // `half` of a sequence's tiles.
  const auto prepare = [&](int32_t half) {
    const int64_t batch = work.tensor_batch(params);
    const int32_t query = half * 32 + lane;
    const int64_t row = work.sequence.query_first + query;
    const bool exists = query < work.sequence.query_length;
    float shift = exists ? *params.lse.at<const float>(batch, work.head, row) : -INFINITY;
    float sum = exists && params.dlse.data != nullptr
                    ? -*params.dlse.at<const float>(batch, work.head, row)
                    : 0;
    const bool second = half % 2 != 0;
    if (!second) {
      mbarrier_wait(&barriers.q_full[place.stage], place.parity, {"the warp of rows", "q_full"});
    }
    // Two halves of a tile after the other: the buffer's turns.
    mbarrier_wait(&barriers.out_full, second ? 1 : 0, {"the warp of rows", "out_full"});
    const uint32_t dout = shared_address(shared.queries(place.stage) + Shape::kTileBytes);
    const auto own = static_cast<uint32_t>(query % Shape::kTile);
#pragma unroll
    for (uint32_t column = 0; column < Shape::kDim; column += 8) {
      sum += row_product<T>(load_shared_16(out + swizzled_offset(own % 32, column, 32)),
                            load_shared_16(dout + swizzled_offset(own, column, Shape::kTile)));
    }
    shared.lse(place.stage)[own] = shift == -INFINITY ? INFINITY : shift * kLog2e;
    shared.delta(place.stage)[own] = exists ? sum : 0;
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&barriers.out_empty);
      if (second) {
        mbarrier_arrive(&barriers.rows_full[place.stage]);
      }
    }
    if (second) {
      place.advance();
    }
  };
  do {
#pragma unroll 1
    for (int32_t half = 2 * work.low; half < 2 * work.high; ++half) {
      prepare(half);
    }
  } while (next_sequence<Shape>(params, work, lane == 0, [] { __syncwarp(); }));
}

}  // namespace flashloom::sm90
