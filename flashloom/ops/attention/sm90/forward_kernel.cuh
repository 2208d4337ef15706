#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/schedule.cuh"

// Forward attention on Hopper. One producer warp streams tiles of keys and values through shared
// memory; each consumer warpgroup owns 64 queries. docs/kernels/attention.md has the picture.

namespace flashloom::sm90 {

struct ForwardParams {
  Problem problem;
  void* out;  // 16-bit, strides in elements
  int64_t out_batch, out_head, out_row;
  float* lse;  // or null
  int64_t lse_batch, lse_head, lse_row;
  const float* sinks;  // (heads) or null
  float scale;         // of the scores, natural
  int32_t row_tiles;   // tiles of queries a head
  int32_t tiles;       // of all heads and sequences
  int32_t section;     // heads that are worked on together; 0: tiles of a head are neighbours
  int32_t* counter;    // zero: blocks draw their tiles from it; null: every gridDim-th tile
};

/// Shape and schedule of a kernel.
///   kGroups    consumer warpgroups, 64 queries each
///   kKeys      keys a tile
///   kStages    tiles of keys (and of values) in flight
///   kQStages   tiles of queries in flight
///   kTurns     warpgroups take turns to issue their products
template <class T_, int kDim_, int kGroups_, int kKeys_, int kStages_, int kQStages_, bool kTurns_>
struct ForwardShape {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kStages = kStages_;
  static constexpr int kQStages = kQStages_;
  static constexpr bool kTurns = kTurns_;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kConsumerRegisters = kGroups == 2 ? 240 : 160;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32;
  static constexpr int kPanels = kDim / 64;
  static constexpr uint32_t kQBytes = kRows * kDim * 2;
  static constexpr uint32_t kTileBytes = kKeys * kDim * 2;
  static constexpr uint32_t kBarrierBytes = 1024;
  static constexpr uint32_t kSharedBytes =
      kBarrierBytes + kQStages * kQBytes + 2 * kStages * kTileBytes;
};

struct ForwardTile {
  int32_t batch, head, row;  // row: first query of the tile
};

/// The tile at place `index` of the order of work. In sections, long rows of tiles come first (a
/// causal mask makes late queries see most) and heads that run side by side share the L2 cache.
__device__ __forceinline__ ForwardTile forward_tile(const ForwardParams& params, int32_t index,
                                                    int32_t rows) {
  int32_t head, tile;
  if (params.section == 0) {
    head = index / params.row_tiles;
    tile = index % params.row_tiles;
  } else {
    const int32_t heads = params.problem.heads * params.problem.batch;
    const int32_t section = index / (params.section * params.row_tiles);
    const int32_t width = min(params.section, heads - section * params.section);
    const int32_t rest = index - section * params.section * params.row_tiles;
    head = section * params.section + rest % width;
    tile = params.row_tiles - 1 - rest / width;
  }
  return {head / params.problem.heads, head % params.problem.heads, tile * rows};
}

/// Tiles of keys that the queries [row, row + rows) of a sequence see; one tile, all of it hidden,
/// if they see none.
struct KeyTiles {
  int32_t begin, end;
};

__device__ __forceinline__ KeyTiles key_tiles(const Sequence& sequence, int32_t row, int32_t rows,
                                              int32_t keys) {
  const int32_t last = min(row + rows, sequence.query_length) - 1;
  const int32_t begin = sequence.key_begin(row) / keys;
  const int32_t end = (sequence.key_end(last) + keys - 1) / keys;
  return last < row || begin >= end ? KeyTiles{0, 1} : KeyTiles{begin, end};
}

/// What the producer tells the consumers about a tile of queries: the divisions that find it are
/// done once, ahead of time.
struct ForwardWork {
  ForwardTile tile;
  KeyTiles range;  // begin < 0: no more work
  Sequence sequence;
};

/// Work that is known at a time: the tiles of queries in shared memory, the one that is being
/// stored, and one to spare.
inline constexpr uint32_t kForwardSlots = 4;

template <class Shape>
struct ForwardBarriers {
  uint64_t q_full[Shape::kQStages], q_empty[Shape::kQStages];
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kStages], v_empty[Shape::kStages];
  ForwardWork work[kForwardSlots];
};

// The producer warpgroup is three threads, each in a warp of its own, so that each runs ahead as
// far as its buffers allow: one draws tiles of queries and loads them, one streams keys, one
// values.

template <class Shape>
__device__ __forceinline__ void forward_produce_queries(const ForwardParams& params,
                                                        const CUtensorMap* map, char* tiles,
                                                        ForwardBarriers<Shape>& barriers) {
  using namespace cuda;
  PipelineState<Shape::kQStages> place;
  const auto blocks = static_cast<int32_t>(gridDim.x);
  auto index = static_cast<int32_t>(blockIdx.x);
  uint32_t slot = 0;
  bool more = true;
  while (more) {
    // Drawn before it is needed: the answer takes a trip to memory.
    const int32_t drawn =
        params.counter != nullptr ? blocks + atomicAdd(params.counter, 1) : index + blocks;
    more = index < params.tiles;
    ForwardWork work;
    work.tile = forward_tile(params, more ? index : 0, Shape::kRows);
    work.sequence = sequence_of(params.problem, work.tile.batch);
    work.range = key_tiles(work.sequence, work.tile.row, Shape::kRows, Shape::kKeys);
    index = drawn;
    if (more && work.tile.row >= work.sequence.query_rows) {
      continue;  // a packed sequence shorter than the longest
    }
    mbarrier_wait(&barriers.q_empty[place.stage], place.parity ^ 1);
    barriers.work[slot] = work;
    if (!more) {
      barriers.work[slot].range = {-1, -1};
      mbarrier_arrive(&barriers.q_full[place.stage]);
      break;
    }
    mbarrier_arrive_expect(&barriers.q_full[place.stage], Shape::kQBytes);
#pragma unroll
    for (int p = 0; p < Shape::kPanels; ++p) {
      tma_load_4d(tiles + place.stage * Shape::kQBytes + p * panel_bytes(Shape::kRows), map,
                  &barriers.q_full[place.stage], p * 64, work.sequence.query_first + work.tile.row,
                  work.tile.head, params.problem.cu_query != nullptr ? 0 : work.tile.batch,
                  kEvictFirst);
    }
    place.advance();
    slot = (slot + 1) % kForwardSlots;
  }
}

/// Streams the tiles of keys, or of values, that the queries see, from the last to the first.
template <class Shape>
__device__ __forceinline__ void forward_produce_keys(const ForwardParams& params,
                                                     const CUtensorMap* map, char* tiles,
                                                     uint64_t* full, uint64_t* empty,
                                                     ForwardBarriers<Shape>& barriers) {
  using namespace cuda;
  PipelineState<Shape::kQStages> q_place;
  PipelineState<Shape::kStages> place;
  for (uint32_t slot = 0;; slot = (slot + 1) % kForwardSlots) {
    mbarrier_wait(&barriers.q_full[q_place.stage], q_place.parity);
    q_place.advance();
    const ForwardWork& work = barriers.work[slot];
    const KeyTiles range = work.range;
    if (range.begin < 0) {
      return;
    }
    const int32_t first = work.sequence.key_first;
    const int32_t head = work.tile.head / params.problem.heads_per_key;
    const int32_t batch = params.problem.cu_key != nullptr ? 0 : work.tile.batch;
    for (int32_t t = range.end - 1; t >= range.begin; --t) {
      mbarrier_wait(&empty[place.stage], place.parity ^ 1);
      mbarrier_arrive_expect(&full[place.stage], Shape::kTileBytes);
#pragma unroll
      for (int p = 0; p < Shape::kPanels; ++p) {
        tma_load_4d(tiles + place.stage * Shape::kTileBytes + p * panel_bytes(Shape::kKeys), map,
                    &full[place.stage], p * 64, first + t * Shape::kKeys, head, batch, kEvictLast);
      }
      place.advance();
    }
  }
}

/// One consumer warpgroup's tile of queries.
template <class Shape>
struct ForwardConsumer {
  using T = typename Shape::T;
  using ScoreProduct = cuda::Wgmma<T, Shape::kKeys>;
  using OutProduct = cuda::Wgmma<T, Shape::kDim>;
  static constexpr int kScores = Shape::kKeys / 2;

  float out[Shape::kDim / 2];
  float scores[kScores];
  uint32_t weights[kScores / 2];  // probabilities as the next product's A operand
  float maximum[2];               // what the exponents are relative to, in units of raw scores
  float limit[2];                 // scores above it move the maximum
  float sum[2];
  float scale_log2;

  __device__ __forceinline__ void start() {
    start_out();
    start_rows();
  }

  __device__ __forceinline__ void start_out() {
#pragma unroll
    for (int i = 0; i < Shape::kDim / 2; ++i) {
      out[i] = 0;
    }
  }

  __device__ __forceinline__ void start_rows() {
    maximum[0] = maximum[1] = limit[0] = limit[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  __device__ __forceinline__ void issue_scores(uint32_t q, uint32_t k) {
    using namespace cuda;
    const uint64_t a = k_major_descriptor(q);
    const uint64_t b = k_major_descriptor(k);
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      ScoreProduct::template from_shared<Major::kReduced, Major::kReduced>(
          scores, a + (k_major_step(step, Shape::kRows) >> 4),
          b + (k_major_step(step, Shape::kKeys) >> 4), step != 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void issue_out(uint32_t v) {
    using namespace cuda;
    const uint64_t b = mn_major_descriptor(v, Shape::kKeys);
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      OutProduct::template from_registers<Major::kOther>(
          out, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
          weights[4 * step + 3], b + (mn_major_step(step) >> 4), 1);
    }
    wgmma_commit();
  }

  /// Hides pairs that the rows do not see. `row` is this thread's first query, `key` the tile's
  /// first key; `left` says whether keys may be hidden on the left.
  __device__ __forceinline__ void mask(const Sequence& sequence, int32_t row, int32_t key,
                                       uint32_t lane, bool left) {
    const int32_t first = key + 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t end = sequence.key_end(row + 8 * half) - first;
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 4; ++i) {
        float& score = scores[4 * (i / 2) + 2 * half + i % 2];
        score = 8 * (i / 2) + i % 2 < end ? score : -INFINITY;
      }
    }
    if (left) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t begin = sequence.key_begin(row + 8 * half) - first;
#pragma unroll
        for (int i = 0; i < Shape::kKeys / 4; ++i) {
          float& score = scores[4 * (i / 2) + 2 * half + i % 2];
          score = 8 * (i / 2) + i % 2 >= begin ? score : -INFINITY;
        }
      }
    }
  }

  /// Scores become exponentials; returns whether `factor` must be applied to `out`.
  ///
  /// The maximum moves only when a score exceeds it by 8 powers of two: until then the exponentials
  /// stay below 256, which costs no accuracy, and `out` needs no scaling.
  __device__ __forceinline__ bool exponentials(float (&factor)[2]) {
    // As integers, floats above a limit that is not negative are found three at a time; negative
    // limits take the exact way below each time.
    int32_t highest[2] = {__float_as_int(scores[0]), __float_as_int(scores[2])};
#pragma unroll
    for (int j = 0; j < Shape::kKeys / 8; ++j) {
      highest[0] = __vimax3_s32(highest[0], __float_as_int(scores[4 * j]),
                                __float_as_int(scores[4 * j + 1]));
      highest[1] = __vimax3_s32(highest[1], __float_as_int(scores[4 * j + 2]),
                                __float_as_int(scores[4 * j + 3]));
    }
    const bool moves = __any_sync(0xffffffffu, highest[0] > __float_as_int(limit[0]) ||
                                                   highest[1] > __float_as_int(limit[1]) ||
                                                   limit[0] < 0 || limit[1] < 0) != 0;
    if (moves) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float row = maximum[half];
#pragma unroll
        for (int j = 0; j < Shape::kKeys / 8; ++j) {
          row = fmaxf(row, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
        }
        row = fmaxf(row, __shfl_xor_sync(0xffffffffu, row, 1));
        row = fmaxf(row, __shfl_xor_sync(0xffffffffu, row, 2));
        const float base = row == -INFINITY ? 0 : row;
        factor[half] = cuda::exp2_fast((maximum[half] - base) * scale_log2);
        sum[half] *= factor[half];
        maximum[half] = row;
        limit[half] = row + 8 / scale_log2;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = maximum[half] == -INFINITY ? 0 : maximum[half] * scale_log2;
#pragma unroll
      for (int j = 0; j < Shape::kKeys / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[4 * j + 2 * half + c];
          score = cuda::exp2_fast(fmaf(score, scale_log2, -shift));
        }
      }
    }
    float even[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < Shape::kKeys / 8; ++j) {
      sum[0] += scores[4 * j];
      sum[1] += scores[4 * j + 2];
      even[0] += scores[4 * j + 1];
      even[1] += scores[4 * j + 3];
    }
    sum[0] += even[0];
    sum[1] += even[1];
    return moves;
  }

  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
#pragma unroll
    for (int j = 0; j < Shape::kDim / 8; ++j) {
      out[4 * j] *= factor[0];
      out[4 * j + 1] *= factor[0];
      out[4 * j + 2] *= factor[1];
      out[4 * j + 3] *= factor[1];
    }
  }

  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      weights[i] = cuda::pack2<T>(scores[2 * i], scores[2 * i + 1]);
    }
  }

  /// Writes the rows [row, row + 8) of this thread that exist.
  __device__ __forceinline__ void store(const ForwardParams& params, const ForwardTile& tile,
                                        const Sequence& sequence, int32_t row, uint32_t lane,
                                        const float (&row_maximum)[2], const float (&row_sum)[2]) {
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = row_sum[half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      float shift = row_maximum[half] * scale_log2;  // -inf for a row that saw nothing
      float weight = 1;
      if (params.sinks != nullptr) {
        const float sink = params.sinks[tile.head] * 1.4426950408889634f;
        const float joint = fmaxf(shift, sink);
        weight = cuda::exp2_fast(shift - joint);
        total = total * weight + cuda::exp2_fast(sink - joint);
        shift = joint;
      }
      const int32_t query = row + 8 * half;
      const bool exists = query < sequence.query_length;
      inverse[half] = exists && total > 0 ? weight / total : 0;
      if (params.lse != nullptr && lane % 4 == 0 && query < sequence.query_rows) {
        const int64_t batch = params.problem.cu_query != nullptr ? 0 : tile.batch;
        params.lse[batch * params.lse_batch + tile.head * params.lse_head +
                   (sequence.query_first + query) * params.lse_row] =
            exists && total > 0 ? (shift + log2f(total)) * 0.6931471805599453f : -INFINITY;
      }
    }
    const int64_t batch = params.problem.cu_query != nullptr ? 0 : tile.batch;
    T* base = static_cast<T*>(params.out) + batch * params.out_batch + tile.head * params.out_head;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t query = row + 8 * half;
      T* place = base + (sequence.query_first + query) * params.out_row;
#pragma unroll
      for (int group = 0; group < Shape::kDim / 32; ++group) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 4 * group + i;
          words[i] = cuda::pack2<T>(out[4 * j + 2 * half] * inverse[half],
                                    out[4 * j + 2 * half + 1] * inverse[half]);
        }
        cuda::quad_transpose(words, lane);
        if (query < sequence.query_rows) {
          *reinterpret_cast<uint4*>(place + 32 * group + 8 * (lane % 4)) =
              make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }
};

/// The steps of all tiles form one pipeline: the scores of the next step, be it of the same tile of
/// queries or of the next, are computed while the values of this one are summed.
template <class Shape>
__device__ __forceinline__ void forward_consume(const ForwardParams& params, uint32_t q_tiles,
                                                uint32_t k_tiles, uint32_t v_tiles,
                                                ForwardBarriers<Shape>& barriers, int32_t group) {
  using namespace cuda;
  const uint32_t thread = threadIdx.x % 128;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t turn = 1 + group;
  const uint32_t next_turn = 1 + (group + 1) % Shape::kGroups;
  PipelineState<Shape::kQStages> q_place;
  PipelineState<Shape::kStages> k_place, v_place;
  ForwardConsumer<Shape> consumer;
  consumer.scale_log2 = params.scale * 1.4426950408889634f;
  auto take_turn = [turn] {
    if constexpr (Shape::kTurns) {
      named_barrier_sync(turn, 256);
    }
  };
  auto pass_turn = [next_turn] {
    if constexpr (Shape::kTurns) {
      named_barrier_arrive(next_turn, 256);
    }
  };
  auto release = [lane](uint64_t* barrier) {
    if (lane == 0) {
      mbarrier_arrive(barrier);
    }
  };
  const auto first_row = static_cast<int32_t>(group * 64);
  const auto own_row = static_cast<int32_t>(group * 64 + (thread / 32) * 16 + lane / 4);
  uint32_t slot = kForwardSlots - 1;
  int32_t t = 0, begin = 0;
  int32_t open = 0, closed = 0;  // tiles before `open` and from `closed` on hide something
  int32_t skipped = 0;  // tiles that other warpgroups see and this one does not, values to release
  auto next_tile = [&] {
    mbarrier_wait(&barriers.q_full[q_place.stage], q_place.parity);
    slot = (slot + 1) % kForwardSlots;
    const ForwardWork& work = barriers.work[slot];
    begin = __shfl_sync(0xffffffffu, work.range.begin, 0);
    t = __shfl_sync(0xffffffffu, work.range.end, 0) - 1;
    const int32_t row = work.tile.row + first_row;
    const int32_t end = work.sequence.key_end(row + 63);
    closed = work.sequence.key_end(row) / Shape::kKeys;
    open = (work.sequence.key_begin(row + 63) + Shape::kKeys - 1) / Shape::kKeys;
    if (begin < 0) {
      return false;
    }
    const int32_t own = max(begin, (end - 1) / Shape::kKeys);
    skipped = t - own;
    for (; t > own; --t) {
      mbarrier_wait(&barriers.k_full[k_place.stage], k_place.parity);
      take_turn();
      pass_turn();
      release(&barriers.k_empty[k_place.stage]);
      k_place.advance();
    }
    return true;
  };
  // In the order of the ring, after the values of the tile before.
  auto skip_values = [&] {
    for (; skipped > 0; --skipped) {
      mbarrier_wait(&barriers.v_full[v_place.stage], v_place.parity);
      release(&barriers.v_empty[v_place.stage]);
      v_place.advance();
    }
  };
  auto q_address = [&] {
    return q_tiles + q_place.stage * Shape::kQBytes + group * 64 * kPanelRowBytes;
  };
  auto mask = [&] {
    if (t >= closed || t < open) {
      const ForwardWork& work = barriers.work[slot];
      consumer.mask(work.sequence, work.tile.row + own_row, t * Shape::kKeys, lane, t < open);
    }
  };
  auto store = [&](uint32_t done, const float(&maximum)[2], const float(&sum)[2]) {
    const ForwardWork& work = barriers.work[done];
    consumer.store(params, work.tile, work.sequence, work.tile.row + own_row, lane, maximum, sum);
  };
  if (Shape::kTurns && group == Shape::kGroups - 1) {
    named_barrier_arrive(1, 256);
  }

  if (!next_tile()) {
    return;
  }
  float factor[2] = {1, 1};
  consumer.start();
  mbarrier_wait(&barriers.k_full[k_place.stage], k_place.parity);
  take_turn();
  wgmma_hold(consumer.scores);
  wgmma_fence();
  consumer.issue_scores(q_address(), k_tiles + k_place.stage * Shape::kTileBytes);
  pass_turn();
  wgmma_wait<0>();
  wgmma_hold(consumer.scores);
  release(&barriers.k_empty[k_place.stage]);
  k_place.advance();
  mask();
  consumer.exponentials(factor);
  consumer.pack();
  skip_values();
  uint32_t done = slot;
  while (true) {
    const bool last = t == begin;
    done = slot;
    --t;
    if (last) {
      release(&barriers.q_empty[q_place.stage]);
      q_place.advance();
      if (!next_tile()) {
        break;
      }
    }
    mbarrier_wait(&barriers.k_full[k_place.stage], k_place.parity);
    take_turn();
    wgmma_hold(consumer.scores);
    wgmma_hold(consumer.weights);
    wgmma_hold(consumer.out);
    wgmma_fence();
    consumer.issue_scores(q_address(), k_tiles + k_place.stage * Shape::kTileBytes);
    mbarrier_wait(&barriers.v_full[v_place.stage], v_place.parity);
    wgmma_hold(consumer.out);
    wgmma_fence();
    consumer.issue_out(v_tiles + v_place.stage * Shape::kTileBytes);
    pass_turn();
    wgmma_wait<1>();
    wgmma_hold(consumer.scores);
    release(&barriers.k_empty[k_place.stage]);
    k_place.advance();
    mask();
    const float sum[2] = {consumer.sum[0], consumer.sum[1]};
    const float maximum[2] = {consumer.maximum[0], consumer.maximum[1]};
    if (last) {
      consumer.start_rows();
    }
    const bool moves = consumer.exponentials(factor);
    schedule_fence(consumer.sum[0] + consumer.sum[1]);
    wgmma_hold(consumer.scores);
    wgmma_wait<0>();
    wgmma_hold(consumer.out);
    release(&barriers.v_empty[v_place.stage]);
    v_place.advance();
    if (last) {
      skip_values();
      store(done, maximum, sum);
      consumer.start_out();
    } else if (moves) {
      consumer.rescale(factor);
    }
    consumer.pack();
  }
  mbarrier_wait(&barriers.v_full[v_place.stage], v_place.parity);
  wgmma_hold(consumer.out);
  wgmma_hold(consumer.weights);
  wgmma_fence();
  consumer.issue_out(v_tiles + v_place.stage * Shape::kTileBytes);
  wgmma_wait<0>();
  wgmma_hold(consumer.out);
  store(done, consumer.maximum, consumer.sum);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ ForwardParams params,
                             const __grid_constant__ CUtensorMap q,
                             const __grid_constant__ CUtensorMap k,
                             const __grid_constant__ CUtensorMap v) {
  using namespace cuda;
  extern __shared__ __align__(1024) char shared[];
  auto& barriers = *reinterpret_cast<ForwardBarriers<Shape>*>(shared);
  char* q_tiles = shared + Shape::kBarrierBytes;
  char* k_tiles = q_tiles + Shape::kQStages * Shape::kQBytes;
  char* v_tiles = k_tiles + Shape::kStages * Shape::kTileBytes;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    constexpr uint32_t kWarps = 4 * Shape::kGroups;
    for (int i = 0; i < Shape::kQStages; ++i) {
      mbarrier_init(&barriers.q_full[i], 1);
      mbarrier_init(&barriers.q_empty[i], kWarps);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      mbarrier_init(&barriers.k_full[i], 1);
      mbarrier_init(&barriers.k_empty[i], kWarps);
      mbarrier_init(&barriers.v_full[i], 1);
      mbarrier_init(&barriers.v_empty[i], kWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    if (threadIdx.x == 0) {
      forward_produce_queries<Shape>(params, &q, q_tiles, barriers);
    } else if (threadIdx.x == 32) {
      forward_produce_keys<Shape>(params, &k, k_tiles, barriers.k_full, barriers.k_empty, barriers);
    } else if (threadIdx.x == 64) {
      forward_produce_keys<Shape>(params, &v, v_tiles, barriers.v_full, barriers.v_empty, barriers);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    forward_consume<Shape>(params, shared_address(q_tiles), shared_address(k_tiles),
                           shared_address(v_tiles), barriers, warpgroup - 1);
  }
}

}  // namespace flashloom::sm90
