#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/forward_band_cut.cuh"
#include "flashloom/ops/attention/sm90/forward_produce.cuh"

// The producer warps of the forward kernel for narrow bands: one finds segments, one loads, one
// clears values behind the end of a sequence.

namespace flashloom::sm90 {

template <class Shape>
__device__ __forceinline__ void forward_band_find(const ForwardBandParams& params,
                                                  ForwardBandBarriers<Shape>& barriers) {
  using namespace cuda;
  PipelineState<kBandSlots> slot;
  ForwardBandCut cut;
  for (bool more = true; more; slot.advance()) {
    mbarrier_wait(&barriers.segment_empty[slot.stage], slot.parity ^ 1,
                  {"the finder of segments", "segment_empty"});
    __syncwarp();
    ForwardBandSegment& segment = barriers.segments[slot.stage];
    cut.next(params, segment);
    __syncwarp();
    more = segment.first < segment.end;
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      mbarrier_arrive(&barriers.segment_full[slot.stage]);
    }
  }
}

/// One thread streams tiles of keys, values and queries in the order in which they are needed.
template <class Shape>
__device__ __forceinline__ void forward_band_load(const ForwardBandParams& params,
                                                  const CUtensorMap* q, const CUtensorMap* k,
                                                  const CUtensorMap* v,
                                                  const ForwardBandShared<Shape>& shared) {
  using namespace cuda;
  ForwardBandBarriers<Shape>& barriers = shared.barriers();
  const Problem& problem = params.forward.problem;
  const int32_t group = problem.heads_per_key;
  PipelineState<Shape::kStages> pair;
  PipelineState<Shape::kQStages> query;
  const auto load = [](char* tile, uint64_t* full, const CUtensorMap* map, int32_t row,
                       int32_t head, int32_t batch) {
#pragma unroll
    for (int p = 0; p < Shape::kPanels; ++p) {
      tma_load_4d(tile + p * panel_bytes(Shape::kTile), map, full, p * 64, row, head, batch);
    }
  };
  for (ForwardBandWalk walk;; walk.slot.advance()) {
    const ForwardBandSegment& segment = walk.wait(barriers, "the producer");
    if (segment.first == segment.end) {
      return;
    }
    const int32_t batch = problem.cu_query != nullptr ? 0 : segment.batch;
    int32_t item = segment.first;
    for (int32_t tile = segment.key_tile; tile < segment.key_end; ++tile) {
      // Where the sequence has no keys, the copy engine is sent outside of the tensor: zeros.
      const bool exists = tile >= 0 && tile * 64 < segment.sequence.key_length;
      const int32_t row = exists ? segment.sequence.key_first + tile * 64 : -64;
      mbarrier_wait(&barriers.empty[pair.stage], pair.parity ^ 1, {"the producer", "empty"});
      uint64_t* full =
          tile == segment.border ? &barriers.border[pair.stage] : &barriers.full[pair.stage];
      mbarrier_arrive_expect(full, 2 * Shape::kTileBytes);
      load(shared.keys(pair.stage), full, k, row, segment.head, batch);
      load(shared.values(pair.stage), full, v, row, segment.head, batch);
      pair.advance();
      // Queries whose last keys these are.
      const int32_t behind = (tile - params.shift - kBandReach + 2) * group;
      for (; item < min(segment.end, behind); ++item) {
        mbarrier_wait(&barriers.q_empty[query.stage], query.parity ^ 1,
                      {"the producer", "q_empty"});
        mbarrier_arrive_expect(&barriers.q_full[query.stage], Shape::kTileBytes);
        load(shared.queries(query.stage), &barriers.q_full[query.stage], q,
             segment.sequence.query_first + item / group * 64, segment.head * group + item % group,
             batch);
        query.advance();
      }
    }
    walk.release(barriers);
  }
}

/// A warp clears values behind the end of a sequence, which others' rows or padding take.
template <class Shape>
__device__ __forceinline__ void forward_band_clear(const ForwardBandShared<Shape>& shared) {
  using namespace cuda;
  ForwardBandBarriers<Shape>& barriers = shared.barriers();
  uint32_t parity = 0;  // a bit a stage
  for (ForwardBandWalk walk;; walk.slot.advance()) {
    const ForwardBandSegment& segment = walk.wait(barriers, "the warp that clears values");
    if (segment.first == segment.end) {
      return;
    }
    if (segment.border >= 0) {
      const uint32_t stage = (segment.key_number + segment.border - segment.key_tile) %
                             static_cast<uint32_t>(Shape::kStages);
      mbarrier_wait(&barriers.border[stage], parity >> stage & 1,
                    {"the warp that clears values", "border"});
      parity ^= 1u << stage;
      clear_rows<Shape>(shared.values(stage), segment.sequence.key_length % Shape::kTile);
      fence_async_shared();
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(&barriers.full[stage]);
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      walk.release(barriers);
    }
  }
}

}  // namespace flashloom::sm90
