#pragma once

#include "flashloom/ops/attention/sm90/backward_schedule.cuh"
#include "flashloom/ops/attention/sm90/forward_band_shape.cuh"

// Which tiles of queries a block of the forward kernel for narrow bands works on.

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

}  // namespace flashloom::sm90
