#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"

// Parameters, shared memory, copies and products of the backward kernel for rows that see few keys.

namespace flashloom::sm90 {

/// A pair of tiles is q and dout, or k and v, of 64 rows.
template <class T_, int kDim_, int kStages_, int kBlocks_>
struct NearShape {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;  // a multiprocessor
  // dV waits for dS, so that P need not be there both rounded and not: registers.
  static constexpr bool kLate = kBlocks > 2;
  static constexpr int kKeys = 64;
  static constexpr int kQueries = 64;
  static constexpr int kPanels = kDim / 64;
  static constexpr bool kLists = false;
  static constexpr BackwardTurns kTurns = BackwardTurns::never;
  static constexpr int kThreads = 128;
  static constexpr uint32_t kTileBytes = 64 * kDim * 2;
  static constexpr uint32_t kRowBytes = kQueries * 4;
  static constexpr uint32_t kBarrierBytes = 1024;
  static constexpr uint32_t kRowsBytes = (2 * kStages * kRowBytes + 1023) / 1024 * 1024;
  static constexpr uint32_t kSharedBytes =
      kBarrierBytes + kRowsBytes + 2 * (1 + kStages) * kTileBytes;
};

struct NearParams {
  BackwardParams keys;
  QueriesParams queries;
  int32_t tiles;             // a key-value head: of keys, or of queries if they are more
  int32_t key_heads, heads;  // batched ones count once a sequence
};

template <class Shape>
struct NearShared {
  char* base;

  __device__ __forceinline__ uint64_t* own_full() const {
    return reinterpret_cast<uint64_t*>(base);
  }

  __device__ __forceinline__ uint64_t* full(uint32_t stage) const { return own_full() + 1 + stage; }

  /// What the block does: registers are few.
  template <class Work>
  __device__ __forceinline__ Work& work() const {
    static_assert(sizeof(Work) <= 512);
    return *reinterpret_cast<Work*>(base + 512);
  }

  __device__ __forceinline__ float* rows(uint32_t stage) const {  // lse, then delta
    return reinterpret_cast<float*>(base + Shape::kBarrierBytes) + 2 * Shape::kQueries * stage;
  }

  /// The block's own pair, then those that pass by.
  __device__ __forceinline__ char* own() const {
    return base + Shape::kBarrierBytes + Shape::kRowsBytes;
  }

  __device__ __forceinline__ char* pair(uint32_t stage) const {
    return own() + 2 * (1 + stage) * Shape::kTileBytes;
  }
};

/// Where the rows of a pair lie.
struct NearPlace {
  int32_t row, head, batch;
};

template <class Shape>
__device__ __forceinline__ void near_load(char* pair, uint64_t* full, const CUtensorMap* first,
                                          const CUtensorMap* second, const NearPlace& place,
                                          uint32_t row_bytes) {
  using namespace cuda;
  mbarrier_arrive_expect(full, 2 * Shape::kTileBytes + row_bytes);
#pragma unroll
  for (int p = 0; p < Shape::kPanels; ++p) {
    tma_load_4d(pair + p * panel_bytes(64), first, full, p * 64, place.row, place.head,
                place.batch);
    tma_load_4d(pair + Shape::kTileBytes + p * panel_bytes(64), second, full, p * 64, place.row,
                place.head, place.batch);
  }
}

template <class Shape>
__device__ __forceinline__ void near_issue_scores(float (&d)[32], uint32_t a, uint32_t b) {
  cuda::wgmma_hold(d);
  cuda::wgmma_fence();
  issue_rows_by_rows<typename Shape::T, Shape::kDim, 64, 64, 64>(d, compute_here(a), b);
}

template <class Shape>
__device__ __forceinline__ void near_issue_sums(float (&d)[Shape::kDim / 2],
                                                const uint32_t (&a)[16], uint32_t b) {
  cuda::wgmma_hold(d);
  cuda::wgmma_fence();
  issue_registers_by_tile<typename Shape::T, Shape::kDim, 64>(d, a, b);
}

/// Begins a step: waits for the pair that passes by, clears rows of others, issues S and dP.
template <class Shape, class Borders>
__device__ __forceinline__ void near_begin_step(const NearShared<Shape>& shared,
                                                const cuda::PipelineState<Shape::kStages>& place,
                                                const Borders& borders, int32_t tile,
                                                float (&scores)[32], float (&dp)[32]) {
  cuda::mbarrier_wait(shared.full(place.stage), place.parity, {"the warpgroup", "a pair"});
  char* pair = shared.pair(place.stage);
  if (tile == borders.tail) {
    zero_rows<Shape::kPanels>(pair, borders.tail_rows, 64, 1);
    zero_rows<Shape::kPanels>(pair + Shape::kTileBytes, borders.tail_rows, 64, 1);
  }
  const uint32_t own = cuda::shared_address(shared.own());
  const uint32_t other = cuda::shared_address(pair);
  near_issue_scores<Shape>(scores, own, other);
  near_issue_scores<Shape>(dp, own + Shape::kTileBytes, other + Shape::kTileBytes);
}

}  // namespace flashloom::sm90
