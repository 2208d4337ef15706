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
  int32_t tiles;  // of a head, of all sequences; of packed ones the most there may be
};

/// A block's tiles [first, end) of a sequence, and [low, high) with those beside them.
struct BandWork {
  int32_t batch, head;
  int32_t tiles;            // of the sequence
  int32_t tail, tail_rows;  // the one whose last rows are another sequence's, or -1
  int32_t first, end, low, high;
  int32_t base;  // a tile is the (tile - base)-th that the block looks at
  int32_t left;  // of the block's tiles, those of sequences to come
  Sequence sequence;

  __device__ __forceinline__ int32_t tensor_batch(const BandParams& params) const {
    return params.problem.cu_key != nullptr ? 0 : batch;
  }
};

template <class Shape>
__device__ __forceinline__ int32_t tiles_of(const Sequence& sequence) {
  return (sequence.key_rows + Shape::kTile - 1) / Shape::kTile;
}

/// Notes the tiles of the work's sequence, which is none behind the last one.
template <class Shape>
__device__ __forceinline__ void begin_sequence(const Problem& problem, BandWork& work) {
  work.tiles = work.batch < problem.batch ? tiles_of<Shape>(work.sequence) : 0;
  work.tail_rows = work.sequence.key_length % Shape::kTile;
  const bool ends = problem.cu_key != nullptr && work.tail_rows != 0;
  work.tail = ends ? work.sequence.key_length / Shape::kTile : -1;
}

/// The packed sequence that owns tile `index` of all, and how many come before its own. Behind the
/// last tile problem.batch. All lanes of a warp call it together.
template <class Shape>
__device__ __forceinline__ int2 band_sequence_at(const Problem& problem, int32_t index) {
  int32_t before = 0;
  for (int32_t first = 0; first < problem.batch; first += 32) {
    const int32_t batch = first + static_cast<int32_t>(threadIdx.x % 32);
    const int32_t own = batch < problem.batch ? tiles_of<Shape>(sequence_of(problem, batch)) : 0;
    int32_t end = own;  // behind this lane's, among these 32 sequences'
#pragma unroll
    for (int32_t step = 1; step < 32; step *= 2) {
      const int32_t lower = __shfl_up_sync(0xffffffffu, end, step);
      end += static_cast<int32_t>(threadIdx.x % 32) >= step ? lower : 0;
    }
    const uint32_t votes = __ballot_sync(0xffffffffu, before + end > index);
    if (votes != 0) {
      const int32_t lane = __ffs(static_cast<int32_t>(votes)) - 1;
      return {first + lane, before + __shfl_sync(0xffffffffu, end - own, lane)};
    }
    before += __shfl_sync(0xffffffffu, end, 31);
  }
  return {problem.batch, before};
}

/// The tiles of block `block` of the first sequence that it has any of. Blocks of the same rows are
/// neighbours: their heads lie side by side in memory. All lanes of a warp call it together.
template <class Shape>
__device__ __forceinline__ BandWork band_work(const BandParams& params, int32_t block) {
  const Problem& problem = params.problem;
  const bool packed = problem.cu_key != nullptr;
  BandWork work;
  const int32_t number = block / problem.heads;
  work.head = block - number * problem.heads;
  const int32_t begin = number * params.run;
  const int32_t count = min(params.run, params.tiles - begin);
  if (packed) {
    const int2 found = band_sequence_at<Shape>(problem, begin);
    work.batch = found.x;
    work.first = begin - found.y;
    work.first = work.batch < problem.batch ? work.first : 0;
    work.sequence = sequence_of(problem, min(work.batch, problem.batch - 1));
  } else {
    work.sequence = sequence_of(problem, 0);  // all are alike
    const int32_t own = tiles_of<Shape>(work.sequence);
    work.batch = begin / own;
    work.first = begin - work.batch * own;
  }
  begin_sequence<Shape>(problem, work);
  work.end = min(work.first + count, work.tiles);
  work.left = count - (work.end - work.first);
  work.low = max(work.first - 1, 0);
  work.high = min(work.end + 1, work.tiles);
  work.base = work.low;
  return work;
}

/// Another packed sequence in the place of one: queries and keys have the same rows, all of which
/// exist. With sequence_of() a producer would spill.
__device__ __forceinline__ void take_sequence(const Problem& problem, int32_t batch,
                                              Sequence& sequence) {
  bool faulty = false;
  const int32_t first = clamp_length(problem.cu_key[batch], problem.total_key, faulty);
  const int32_t end = clamp_length(problem.cu_key[batch + 1], problem.total_key, faulty);
  const int32_t rows = clamp_length(end - first, problem.key_length, faulty);
  sequence.query_first = sequence.key_first = first;
  sequence.query_rows = sequence.key_rows = rows;
  sequence.query_length = sequence.key_length = rows;
  if (faulty && problem.status != nullptr) {
    *problem.status = 1;
  }
}

/// Goes on to the block's tiles of the next sequence, if it has any. Those that share `work` call
/// it together: sync() waits for them, one of them writes.
template <class Shape, class Sync>
__device__ __forceinline__ bool next_sequence(const BandParams& params, BandWork& work, bool writes,
                                              Sync&& sync) {
  const Problem& problem = params.problem;
  const bool packed = problem.cu_key != nullptr;
  const int32_t left = work.left;
  if (left == 0) {
    return false;
  }
  sync();  // all have read
  if (writes) {
    ++work.batch;
    work.base -= work.high;
    if (packed) {
#pragma unroll 1
      for (work.tiles = 0; work.batch < problem.batch; ++work.batch) {
        take_sequence(problem, work.batch, work.sequence);
        begin_sequence<Shape>(problem, work);
        if (work.tiles > 0) {
          break;
        }
      }
    }
    work.low = work.first = 0;
    work.end = min(left, work.tiles);
    work.high = min(work.end + 1, work.tiles);
    work.left = work.end > 0 ? left - work.end : 0;
  }
  sync();
  return work.end > 0;
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
