#pragma once

#include "flashloom/ops/attention/portable/pairs.cuh"

// What a launch of the backward kernel is: tiles, shared memory, parameters.

namespace flashloom::portable {

/// Which results a launch makes.
enum class Side { queries, keys };

template <class Element, int kHeadDim, int kWarpCount, int kInnerRows>
struct BackwardShape {
  using T = Element;
  static constexpr int kDim = kHeadDim;
  static constexpr int kWarps = kWarpCount;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kOuter = 16 * kWarps;
  static constexpr int kInner = kInnerRows;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  // dK and dV together do not fit the registers of wide rows: blocks of their own make each.
  static constexpr bool kSplit = kRowBytes > 256;
  static constexpr int kStages = kSplit ? 1 : 2;  // buffers of inner tiles
  static constexpr int kTileBytes = (2 * kOuter + 2 * kStages * kInner) * kRowBytes;

  struct Stage {
    float lse[kInner], delta[kInner];  // of inner queries
    float entropy[kInner], dentropy[kInner];
  };

  struct Shared {
    SharedWalk walk;
    HeadRows x1, x2, y1, y2;
    Stage stages[kStages];
  };

  static constexpr int kSharedBytes = kTileBytes + static_cast<int>(sizeof(Shared));
  static_assert(kSharedBytes <= kLeastSharedMemory);
};

/// Numbers of a query row that the backward pass needs, by (head, row of all sequences).
struct QueryNumbers {
  float* lse = nullptr;      // +inf for rows without a key, so that P is 0
  float* delta = nullptr;    // sum dO o out - dlse
  float* entropy = nullptr;  // null unless there is a gradient of the entropy
  float* dentropy = nullptr;
  int64_t rows = 0;  // a head

  __device__ __forceinline__ int64_t at(int32_t head, int32_t first_row) const {
    return head * rows + first_row;
  }
};

struct BackwardParams {
  Problem problem;
  RowsView out, dout, dq, dk, dv;
  RowsView lse, entropy, dlse, dentropy;
  QueryNumbers numbers;
  float entropy_order = 1;
  bool accumulate = false;
  int32_t tiles = 0;  // outer tiles, a (sequence, head)
};

/// First row of a sequence among all rows of a head.
__device__ __forceinline__ int32_t first_of_all(const Problem& problem, const SequenceRows& lengths,
                                                int32_t sequence) {
  return problem.source.cu_query != nullptr ? lengths.query_first
                                            : sequence * problem.source.max_query;
}

}  // namespace flashloom::portable
