#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"

// Parameters, work and shared memory of the backward kernel for narrow bands.

namespace flashloom::sm90 {

template <class T_>
struct BandShape {
  using T = T_;
  static constexpr int kDim = 64;
  static constexpr int kTile = 64;
  static constexpr int kQueries = kTile;
  static constexpr int kKeys = kTile;
  static constexpr int kQueryStages = 3;  // those that a tile of keys sees
  static constexpr int kKeyStages = 2;
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 2;  // a multiprocessor
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 216;
  static_assert(kBlocks * 128 * (kProducerRegisters + kConsumerRegisters) <= 65536);
  static constexpr uint32_t kTileBytes = kTile * kDim * 2;
  static constexpr uint32_t kSumBytes = kTile * kDim * 4;
  static constexpr uint32_t kBarrierBytes = 512;
  static constexpr uint32_t kRowBytes = kTile * 4;
  static constexpr uint32_t kHeadBytes =
      (kBarrierBytes + 2 * kQueryStages * kRowBytes + 1023) / 1024 * 1024;
  static constexpr uint32_t kSharedBytes = kHeadBytes +
                                           (2 * kQueryStages + 2 * kKeyStages + 1) * kTileBytes +
                                           kSumBytes + kTileBytes / 2;
  // With what the system keeps of a multiprocessor for each block.
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 * 1024);
};

struct BandParams {
  Problem problem;
  int32_t columns, value_columns;      // of q and k, of v and dout
  RowTensor lse, dlse;                 // dlse's data may be null
  CUtensorMap out;                     // half tiles
  CUtensorMap dq_map, dk_map, dv_map;  // if `sends`
  RowTensor dq, dk, dv;
  float scale;
  bool accumulate;
  bool sends;     // results are of the storage type and not added to: the copy engine stores them
  int32_t run;    // tiles of a block
  int32_t tiles;  // of a head, of all sequences
};

/// A block's tiles [first, end) of a sequence, and [low, high) with those beside them.
struct BandWork {
  int32_t batch, head;
  int32_t tiles;  // of the sequence
  int32_t first, end, low, high;
  int32_t base;  // a tile is the (tile - base)-th that the block looks at
  int32_t left;  // of the block's tiles, those of sequences to come
  Sequence sequence;

  __device__ __forceinline__ int32_t tensor_batch(const BandParams& params) const {
    return params.problem.cu_key != nullptr ? 0 : batch;
  }
};

/// The tiles of block `block` of the first sequence that it has any of. Blocks of the same rows are
/// neighbours: their heads lie side by side in memory. All lanes of a warp call it together.
template <class Shape>
__device__ __forceinline__ BandWork band_work(const BandParams& params, int32_t block) {
  const Problem& problem = params.problem;
  const bool packed = problem.cu_key != nullptr;
  BandWork work;
  const int32_t number = block / problem.heads;
  work.head = block - number * problem.heads;
  work.batch = 0;
  if (packed) {  // sequences start runs of their own
    work.batch = sequence_at(problem.cu_key, problem.batch, problem.total_key,
                             params.run * Shape::kTile, number);
  }
  work.sequence = sequence_of(problem, work.batch);
  work.tiles = (work.sequence.key_rows + Shape::kTile - 1) / Shape::kTile;
  const int32_t begin = number * params.run;
  int32_t count = params.run;
  if (packed) {
    const int32_t before = work.sequence.key_first / (params.run * Shape::kTile) + work.batch;
    work.first = begin - before * params.run;
  } else {
    work.batch = begin / work.tiles;
    work.first = begin - work.batch * work.tiles;
    count = min(count, params.tiles - begin);
  }
  work.end = min(work.first + count, work.tiles);
  work.left = packed ? 0 : count - (work.end - work.first);
  work.low = max(work.first - 1, 0);
  work.high = min(work.end + 1, work.tiles);
  work.base = work.low;
  return work;
}

/// Goes on to the block's tiles of the next sequence, if it has any; not of a packed batch. Those
/// that share `work` call it together: sync() waits for them, one of them writes.
template <class Sync>
__device__ __forceinline__ bool next_sequence(BandWork& work, bool writes, Sync&& sync) {
  const int32_t left = work.left;
  if (left == 0) {
    return false;
  }
  sync();  // all have read
  if (writes) {
    ++work.batch;
    work.base -= work.high;
    work.low = work.first = 0;
    work.end = min(left, work.tiles);
    work.high = min(work.end + 1, work.tiles);
    work.left = left - work.end;
  }
  sync();
  return true;
}

enum class BandRole { loads, loads_out, rows, consumes };
inline constexpr int kBandRoles = 4;

template <class Shape>
struct BandBarriers {
  uint64_t q_full[Shape::kQueryStages], q_empty[Shape::kQueryStages];
  uint64_t k_full[Shape::kKeyStages], k_empty[Shape::kKeyStages];
  uint64_t rows_full[Shape::kQueryStages];  // lse and delta of a tile of queries
  uint64_t out_full, out_empty;
};

template <class Shape>
struct BandShared {
  char* base;

  __device__ __forceinline__ BandBarriers<Shape>& barriers() const {
    return *reinterpret_cast<BandBarriers<Shape>*>(base);
  }

  /// Each role has its own: it is where it is.
  __device__ __forceinline__ BandWork& work(BandRole role) const {
    constexpr uint32_t kFirst = 128;
    static_assert(sizeof(BandBarriers<Shape>) <= kFirst &&
                  kFirst + kBandRoles * sizeof(BandWork) <= Shape::kBarrierBytes);
    return reinterpret_cast<BandWork*>(base + kFirst)[static_cast<int>(role)];
  }

  __device__ __forceinline__ float* lse(uint32_t stage) const {
    return reinterpret_cast<float*>(base + Shape::kBarrierBytes + stage * Shape::kRowBytes);
  }

  __device__ __forceinline__ float* delta(uint32_t stage) const {
    return lse(Shape::kQueryStages + stage);
  }

  /// Pairs of q and dout.
  __device__ __forceinline__ char* queries(uint32_t stage) const {
    return base + Shape::kHeadBytes + 2 * stage * Shape::kTileBytes;
  }

  /// Pairs of k and v.
  __device__ __forceinline__ char* keys(uint32_t stage) const {
    return queries(Shape::kQueryStages + stage);
  }

  __device__ __forceinline__ char* ds() const { return keys(Shape::kKeyStages); }

  /// Sums of dQ in fragment order: each thread's own.
  __device__ __forceinline__ float4* sums() const {
    return reinterpret_cast<float4*>(ds() + Shape::kTileBytes);
  }

  /// Half a tile.
  __device__ __forceinline__ char* out() const {
    return ds() + Shape::kTileBytes + Shape::kSumBytes;
  }
};

}  // namespace flashloom::sm90
