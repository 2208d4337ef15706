#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"
#include "flashloom/ops/attention/sm90/forward_band_shape.cuh"
#include "flashloom/ops/attention/sm90/forward_produce.cuh"

// The producer warps of the forward kernel for narrow bands: one finds segments, one loads, one
// clears values behind the end of a sequence.

namespace flashloom::sm90 {

/// The items of a block: runs of neighbouring ones, every gridDim-th, heads side by side. Blocks of
/// neighbouring heads are at the same rows at the same time: where rows of all heads lie side by
/// side, what memory fetches for one is near to what it fetches for the next.
struct ForwardBandRuns {
  int32_t run = static_cast<int32_t>(blockIdx.x);
  int32_t begin = 0, end = 0;  // of all heads' lines

  /// The next items, none behind the last run.
  __device__ __forceinline__ void next(const ForwardBandParams& params) {
    const int64_t items = int64_t{params.line} * params.forward.problem.heads_per_key;
    while (begin >= end && run < params.columns * params.heads) {
      const int64_t start = run % params.heads * items;
      const int32_t own = run / params.heads;
      begin = static_cast<int32_t>(start + own * items / params.columns);
      end = static_cast<int32_t>(start + (own + 1) * items / params.columns);
      run += static_cast<int32_t>(gridDim.x);
    }
  }
};

/// Cuts a block's items into segments. All lanes of a warp find where a segment starts, the first
/// writes it to shared memory at once: registers are few.
class ForwardBandCut {
 public:
  /// Behind the last segment comes one without items.
  __device__ __forceinline__ void next(const ForwardBandParams& params,
                                       ForwardBandSegment& segment) {
    const Problem& problem = params.forward.problem;
    const int32_t group = problem.heads_per_key;
    const int32_t line = params.line * group;
    for (;;) {
      runs_.next(params);
      const int32_t head = runs_.begin / line;
      const int32_t rest = runs_.begin - head * line;
      const bool done = runs_.begin >= runs_.end;
      if (params.sequences > 0) {
        sequence_ = rest / (params.sequences * group);
      } else if (!done) {
        find_sequence(problem, head, rest / group);
      }
      int32_t passed = 0;
      if (threadIdx.x % 32 == 0) {
        segment.batch = sequence_;
        segment.head = head;
        segment.first = segment.end = 0;
        segment.number = number_;
        segment.key_number = key_number_;
        passed = done ? 0 : fill(params, segment, rest);
        if (passed > 0) {
          number_ += passed;
          key_number_ += segment.key_end - segment.key_tile;
        }
      }
      passed = __shfl_sync(0xffffffffu, passed, 0);
      runs_.begin += abs(passed);
      if (passed >= 0) {
        return;
      }
    }
  }

 private:
  static constexpr int32_t kRows = 64;

  /// The first place of a packed sequence, see sequence_at().
  static __device__ __forceinline__ int32_t place(const Problem& problem, int32_t sequence) {
    return min(max(problem.cu_query[sequence], 0), problem.total_query) / kRows + sequence;
  }

  __device__ __forceinline__ void find_sequence(const Problem& problem, int32_t head,
                                                int32_t index) {
    if (head != head_) {
      head_ = head;
      sequence_ = sequence_at(problem.cu_query, problem.batch, problem.total_query, kRows, index);
    }
    while (sequence_ + 1 < problem.batch && place(problem, sequence_ + 1) <= index) {
      ++sequence_;
    }
  }

  /// The items of a sequence from item `rest` of its head on; returns how many, or the negative
  /// number of places without a tile that come first.
  __device__ __forceinline__ int32_t fill(const ForwardBandParams& params,
                                          ForwardBandSegment& segment, int32_t rest) const {
    const ForwardParams& forward = params.forward;
    const Problem& problem = forward.problem;
    const int32_t group = problem.heads_per_key;
    const bool packed = params.sequences == 0;
    segment.sequence = sequence_of(problem, sequence_);
    const Sequence& sequence = segment.sequence;
    const int32_t start =
        packed ? sequence.query_first / kRows + sequence_ : sequence_ * params.sequences;
    const int32_t first = rest - start * group;
    const int32_t end =
        min((sequence.query_rows + kRows - 1) / kRows * group, first + runs_.end - runs_.begin);
    if (first < 0 || first >= end) {
      int32_t next = start;  // the first place of a sequence behind these
      if (first >= 0) {
        next = sequence_ + 1 < problem.batch ? place(problem, sequence_ + 1) : params.line;
      }
      return -max(next * group - rest, 1);
    }
    segment.first = first;
    segment.end = end;
    segment.key_tile = first / group + params.shift;
    segment.key_end = (end - 1) / group + params.shift + kBandReach;
    const int32_t last = sequence.key_length / kRows;
    const bool dirty = sequence.key_length % kRows != 0 &&
                       sequence.key_first + sequence.key_length < forward.tensor_keys;
    const bool inside = last >= segment.key_tile && last < segment.key_end;
    segment.border = dirty && inside ? last : INT32_MIN;
    segment.lse = (packed ? 0 : sequence_) * forward.lse_batch +
                  int64_t{segment.head} * group * forward.lse_head +
                  sequence.query_first * forward.lse_row;
    return end - first;
  }

  ForwardBandRuns runs_;
  uint32_t number_ = 0, key_number_ = 0;  // lane 0's
  int32_t head_ = -1, sequence_ = 0;
};

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
