#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/schedule.cuh"

// Backward attention on Hopper. A block owns 128 keys of a key-value head and walks the tiles of
// queries that see them, of every query head that reads them; dK and dV stay in registers, dQ is
// added up in f32 in global memory. Everything is computed transposed (keys x queries), so that P
// and dS are A operands straight from registers. docs/kernels/attention.md has the picture.

namespace flashloom::sm90 {

struct BackwardParams {
  Problem problem;
  void *dk, *dv;  // 16-bit, strides in elements
  int64_t dk_batch, dk_head, dk_row;
  int64_t dv_batch, dv_head, dv_row;
  const float* lse;  // (batch, heads, padded rows) in powers of two; +inf where nothing is to come
  const float* delta;  // (batch, heads, padded rows): sum of dout * out, less dlse
  float* dq;           // (batch, heads, tiles of queries, 2 groups, 64 x 64 in fragment order)
  int32_t* turns;  // (batch, heads, tiles of queries, 2) zero: sums in the order of keys; or null
  float scale;
  int32_t query_tiles;  // a head
  int32_t key_tiles;    // a head
  int32_t section;      // key-value heads worked on together; 0: tiles of a head are neighbours
};

template <class T_, int kDim_, int kStages_>
struct BackwardShape {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kStages = kStages_;
  static constexpr int kKeys = 128;  // 64 a warpgroup
  // As many as leave registers for dK and dV: scores and their gradients take kQueries a thread.
  static constexpr int kQueries = kDim == 64 ? 128 : 64;
  // dS from P as rounded for dV: frees the registers of P, which 128 queries need.
  static constexpr bool kRoundedWeights = kQueries == 128;
  static constexpr int kPanels = kDim / 64;
  static constexpr int kThreads = 384;
  static constexpr uint32_t kKeyBytes = kKeys * kDim * 2;
  static constexpr uint32_t kQueryBytes = kQueries * kDim * 2;
  static constexpr uint32_t kScoreBytes = kKeys * kQueries * 2;
  static constexpr uint32_t kRowBytes = kQueries * 4;
  static constexpr uint32_t kBarrierBytes = 1024;
  // Tiles start at multiples of 1024 bytes.
  static constexpr uint32_t kRowsBytes = (2 * kStages * kRowBytes + 1023) / 1024 * 1024;
  static constexpr uint32_t kSharedBytes =
      kBarrierBytes + kRowsBytes + 2 * kKeyBytes + 2 * kStages * kQueryBytes + 2 * kScoreBytes;
};

template <class Shape>
struct BackwardBarriers {
  uint64_t k_full, v_full;
  uint64_t q_full[Shape::kStages], q_empty[Shape::kStages];
  uint64_t dout_full[Shape::kStages], dout_empty[Shape::kStages];
};

template <class Shape>
struct BackwardShared {
  char* base;

  __device__ __forceinline__ BackwardBarriers<Shape>& barriers() const {
    return *reinterpret_cast<BackwardBarriers<Shape>*>(base);
  }

  __device__ __forceinline__ float* lse(uint32_t stage) const {
    return reinterpret_cast<float*>(base + Shape::kBarrierBytes + stage * Shape::kRowBytes);
  }

  __device__ __forceinline__ float* delta(uint32_t stage) const {
    return lse(Shape::kStages + stage);
  }

  __device__ __forceinline__ char* k() const {
    return base + Shape::kBarrierBytes + Shape::kRowsBytes;
  }

  __device__ __forceinline__ char* v() const { return k() + Shape::kKeyBytes; }

  __device__ __forceinline__ char* q(uint32_t stage) const {
    return v() + Shape::kKeyBytes + stage * Shape::kQueryBytes;
  }

  __device__ __forceinline__ char* dout(uint32_t stage) const { return q(Shape::kStages + stage); }

  __device__ __forceinline__ char* ds(uint32_t buffer) const {
    return q(2 * Shape::kStages) + buffer * Shape::kScoreBytes;
  }
};

/// A block's keys and the tiles of queries [begin, end) that see them.
struct BackwardWork {
  int32_t batch, head, key;  // key-value head; first key
  int32_t begin, end;
  Sequence sequence;
};

template <class Shape>
__device__ __forceinline__ BackwardWork backward_work(const BackwardParams& params) {
  const Problem& problem = params.problem;
  const int32_t heads_k = problem.heads / problem.heads_per_key;
  const auto index = static_cast<int32_t>(blockIdx.x);
  int32_t head, tile;
  if (params.section == 0) {
    head = index / params.key_tiles;
    tile = index % params.key_tiles;
  } else {
    // Early keys, which most queries see under a causal mask, come first; but last where sums
    // take turns, since late keys meet a tile of queries first.
    const int32_t section = index / (params.section * params.key_tiles);
    const int32_t width = min(params.section, heads_k * problem.batch - section * params.section);
    const int32_t rest = index - section * params.section * params.key_tiles;
    head = section * params.section + rest % width;
    tile = rest / width;
    if (params.turns != nullptr) {
      tile = params.key_tiles - 1 - tile;
    }
  }
  BackwardWork work;
  work.batch = head / heads_k;
  work.head = head % heads_k;
  work.key = tile * Shape::kKeys;
  work.sequence = sequence_of(problem, work.batch);
  const int32_t last = min(work.key + Shape::kKeys, work.sequence.key_length) - 1;
  work.begin = work.sequence.query_begin(work.key) / Shape::kQueries;
  work.end = last < work.key
                 ? work.begin
                 : (work.sequence.query_end(last) + Shape::kQueries - 1) / Shape::kQueries;
  work.end = max(work.begin, work.end);
  return work;
}

template <class Shape>
__device__ __forceinline__ void backward_load(char* tile, const CUtensorMap* map, uint64_t* full,
                                              int32_t rows, int32_t row, int32_t head,
                                              int32_t batch) {
#pragma unroll
  for (int p = 0; p < Shape::kPanels; ++p) {
    cuda::tma_load_4d(tile + p * cuda::panel_bytes(rows), map, full, p * 64, row, head, batch,
                      cuda::kEvictLast);
  }
}

/// Streams the tiles of q (with lse) or of dout (with delta).
template <class Shape>
__device__ __forceinline__ void backward_produce(const BackwardParams& params,
                                                 const BackwardWork& work, const CUtensorMap* map,
                                                 const float* rows, char* tiles, float* row_tiles,
                                                 uint64_t* full, uint64_t* empty) {
  using namespace cuda;
  PipelineState<Shape::kStages> place;
  const int32_t padded = params.query_tiles * Shape::kQueries;
  const int32_t batch = params.problem.cu_query != nullptr ? 0 : work.batch;
  for (int32_t member = 0; member < params.problem.heads_per_key; ++member) {
    const int32_t head = work.head * params.problem.heads_per_key + member;
    const float* source = rows + (int64_t{work.batch} * params.problem.heads + head) * padded;
    for (int32_t t = work.begin; t < work.end; ++t) {
      mbarrier_wait(&empty[place.stage], place.parity ^ 1);
      mbarrier_arrive_expect(&full[place.stage], Shape::kQueryBytes + Shape::kRowBytes);
      backward_load<Shape>(tiles + place.stage * Shape::kQueryBytes, map, &full[place.stage],
                           Shape::kQueries, work.sequence.query_first + t * Shape::kQueries, head,
                           batch);
      bulk_load(row_tiles + place.stage * Shape::kQueries, source + t * Shape::kQueries,
                Shape::kRowBytes, &full[place.stage]);
      place.advance();
    }
  }
}

/// How many other tiles of keys add to the dQ of query tile t before this one does. Blocks start in
/// the order of their index, and those that come before have a lower one, so none waits for a
/// block that cannot start.
template <class Shape>
__device__ __forceinline__ int32_t backward_rank(const BackwardParams& params,
                                                 const BackwardWork& work, int32_t t) {
  const int32_t own = work.key / Shape::kKeys;
  if (params.section == 0) {
    return own - work.sequence.key_begin(t * Shape::kQueries) / Shape::kKeys;
  }
  return (work.sequence.key_end((t + 1) * Shape::kQueries - 1) - 1) / Shape::kKeys - own;
}

__device__ __forceinline__ void wait_for_turn(const int32_t* turn, int32_t rank) {
  int32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
  } while (now != rank);
}

__device__ __forceinline__ void end_turn(int32_t* turn) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(turn) : "memory");
}

template <class Shape>
struct BackwardConsumer {
  using T = typename Shape::T;
  using ScoreProduct = cuda::Wgmma<T, Shape::kQueries>;
  using KeyProduct = cuda::Wgmma<T, Shape::kDim>;
  using QueryProduct = cuda::Wgmma<T, 64>;
  static constexpr int kScores = Shape::kQueries / 2;

  float dk[Shape::kDim / 2], dv[Shape::kDim / 2];

  /// d (64 keys x queries) = a (keys) b (queries)^T.
  static __device__ __forceinline__ void issue_scores(float (&d)[kScores], uint32_t a, uint32_t b) {
    using namespace cuda;
    const uint64_t left = k_major_descriptor(a);
    const uint64_t right = k_major_descriptor(b);
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      ScoreProduct::template from_shared<Major::kReduced, Major::kReduced>(
          d, left + (k_major_step(step, Shape::kKeys) >> 4),
          right + (k_major_step(step, Shape::kQueries) >> 4), step != 0);
    }
    wgmma_commit();
  }

  /// d (64 keys x dim) += a (keys x queries, registers) b (queries x dim).
  static __device__ __forceinline__ void issue_keys(float (&d)[Shape::kDim / 2],
                                                    const uint32_t (&a)[kScores / 2], uint32_t b) {
    using namespace cuda;
    const uint64_t right = mn_major_descriptor(b, Shape::kQueries);
#pragma unroll
    for (int step = 0; step < Shape::kQueries / 16; ++step) {
      KeyProduct::template from_registers<Major::kOther>(d, a[4 * step], a[4 * step + 1],
                                                         a[4 * step + 2], a[4 * step + 3],
                                                         right + (mn_major_step(step) >> 4), 1);
    }
    wgmma_commit();
  }

  /// d (64 queries x 64) = a (keys x queries)^T b (keys x 64 columns).
  static __device__ __forceinline__ void issue_queries(float (&d)[32], uint32_t a, uint32_t b) {
    using namespace cuda;
    const uint64_t left = mn_major_descriptor(a, Shape::kKeys);
    const uint64_t right = mn_major_descriptor(b, Shape::kKeys);
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      QueryProduct::template from_shared<Major::kOther, Major::kOther>(
          d, left + (mn_major_step(step) >> 4), right + (mn_major_step(step) >> 4), step != 0);
    }
    wgmma_commit();
  }

  /// Hides pairs; `key` is this thread's first key, `query` the tile's first query.
  static __device__ __forceinline__ void mask(float (&scores)[kScores], const Sequence& sequence,
                                              int32_t key, int32_t query, uint32_t lane) {
    const int32_t first = query + 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t own = key + 8 * half;
      const int32_t begin = sequence.query_begin(own) - first;
      const int32_t end = own < sequence.key_length ? sequence.query_end(own) - first : INT32_MIN;
#pragma unroll
      for (int i = 0; i < Shape::kQueries / 4; ++i) {
        const int32_t place = 8 * (i / 2) + i % 2;
        float& score = scores[4 * (i / 2) + 2 * half + i % 2];
        score = place >= begin && place < end ? score : -INFINITY;
      }
    }
  }

  static __device__ __forceinline__ void store(const float (&sum)[Shape::kDim / 2], float factor,
                                               void* out, int64_t row_stride, int32_t row,
                                               int32_t rows, uint32_t lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* place = static_cast<T*>(out) + (row + 8 * half) * row_stride;
#pragma unroll
      for (int group = 0; group < Shape::kDim / 32; ++group) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 4 * group + i;
          words[i] =
              cuda::pack2<T>(sum[4 * j + 2 * half] * factor, sum[4 * j + 2 * half + 1] * factor);
        }
        cuda::quad_transpose(words, lane);
        if (row + 8 * half < rows) {
          *reinterpret_cast<uint4*>(place + 32 * group + 8 * (lane % 4)) =
              make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void run(const BackwardParams& params, const BackwardWork& work,
                                      const BackwardShared<Shape>& shared, int32_t group) {
    using namespace cuda;
    const uint32_t thread = threadIdx.x % 128;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = thread / 32;
    const float scale_log2 = params.scale * 1.4426950408889634f;
    BackwardBarriers<Shape>& barriers = shared.barriers();
    PipelineState<Shape::kStages> place;
#pragma unroll
    for (int i = 0; i < Shape::kDim / 2; ++i) {
      dk[i] = dv[i] = 0;
    }
    const auto own_key = static_cast<int32_t>(work.key + group * 64 + warp * 16 + lane / 4);
    const int32_t tiles = work.end - work.begin;
    const int32_t count = tiles * params.problem.heads_per_key;
    if (count > 0) {
      const uint32_t k = shared_address(shared.k());
      const uint32_t v = shared_address(shared.v());
      const uint32_t own_k = k + group * 64 * kPanelRowBytes;
      const uint32_t own_v = v + group * 64 * kPanelRowBytes;
      // This warpgroup's 64 x 64 part of dQ: half of the columns, or half of the queries.
      const uint32_t dq_k = Shape::kDim == 128 ? k + group * panel_bytes(Shape::kKeys) : k;
      const uint32_t dq_ds = Shape::kDim == 128 ? 0 : group * panel_bytes(Shape::kKeys);
      // Lane l of stmatrix: row l % 16, columns 8 (l / 16).
      const uint32_t store_row = group * 64 + warp * 16 + lane % 16;
      // Tiles in [open, closed) hide nothing from these 64 keys.
      const int32_t first_key = work.key + group * 64;
      const bool keys_exist = first_key + 64 <= work.sequence.key_length;
      const int32_t open =
          (work.sequence.query_begin(first_key + 63) + Shape::kQueries - 1) / Shape::kQueries;
      const int32_t visible_end = work.sequence.query_end(first_key);
      const int32_t closed =
          visible_end >= work.sequence.query_length ? work.end : visible_end / Shape::kQueries;
      float scores[kScores], dp[kScores], dq[32];
      uint32_t weights[kScores / 2], ds[kScores / 2];
      int32_t t = work.begin;
      int32_t head = work.head * params.problem.heads_per_key;
      mbarrier_wait(&barriers.k_full, 0);
      mbarrier_wait(&barriers.q_full[0], 0);
      wgmma_hold(scores);
      wgmma_fence();
      issue_scores(scores, own_k, shared_address(shared.q(0)));
      mbarrier_wait(&barriers.v_full, 0);
      for (int32_t step = 0; step < count; ++step) {
        const uint32_t stage = place.stage;
        wgmma_wait<0>();
        wgmma_hold(scores);
        mbarrier_wait(&barriers.dout_full[stage], place.parity);
        wgmma_hold(dp);
        wgmma_fence();
        issue_scores(dp, own_v, shared_address(shared.dout(stage)));
        const float* lse = shared.lse(stage) + 2 * (lane % 4);
        const float* delta = shared.delta(stage) + 2 * (lane % 4);
        if (t < open || t >= closed || !keys_exist) {
          mask(scores, work.sequence, own_key, t * Shape::kQueries, lane);
        }
#pragma unroll
        for (int j = 0; j < Shape::kQueries / 8; ++j) {
          const float2 shift = *reinterpret_cast<const float2*>(lse + 8 * j);
          scores[4 * j] = exp2_fast(fmaf(scores[4 * j], scale_log2, -shift.x));
          scores[4 * j + 1] = exp2_fast(fmaf(scores[4 * j + 1], scale_log2, -shift.y));
          scores[4 * j + 2] = exp2_fast(fmaf(scores[4 * j + 2], scale_log2, -shift.x));
          scores[4 * j + 3] = exp2_fast(fmaf(scores[4 * j + 3], scale_log2, -shift.y));
          weights[2 * j] = pack2<T>(scores[4 * j], scores[4 * j + 1]);
          weights[2 * j + 1] = pack2<T>(scores[4 * j + 2], scores[4 * j + 3]);
        }
        wgmma_hold(weights);
        wgmma_hold(dv);
        wgmma_fence();
        issue_keys(dv, weights, shared_address(shared.dout(stage)));
        wgmma_wait<1>();
        wgmma_hold(dp);
#pragma unroll
        for (int j = 0; j < Shape::kQueries / 8; ++j) {
          const float2 shift = *reinterpret_cast<const float2*>(delta + 8 * j);
          float p[4] = {scores[4 * j], scores[4 * j + 1], scores[4 * j + 2], scores[4 * j + 3]};
          if constexpr (Shape::kRoundedWeights) {
            unpack2<T>(weights[2 * j], p[0], p[1]);
            unpack2<T>(weights[2 * j + 1], p[2], p[3]);
          }
          ds[2 * j] = pack2<T>(p[0] * (dp[4 * j] - shift.x), p[1] * (dp[4 * j + 1] - shift.y));
          ds[2 * j + 1] =
              pack2<T>(p[2] * (dp[4 * j + 2] - shift.x), p[3] * (dp[4 * j + 3] - shift.y));
        }
        const uint32_t buffer = shared_address(shared.ds(step % 2));
#pragma unroll
        for (int i = 0; i < Shape::kQueries / 16; ++i) {
          stmatrix_x4(buffer + swizzled_offset(store_row, 16 * i + 8 * (lane / 16), Shape::kKeys),
                      ds[4 * i], ds[4 * i + 1], ds[4 * i + 2], ds[4 * i + 3]);
        }
        wgmma_hold(ds);
        wgmma_hold(dk);
        wgmma_fence();
        issue_keys(dk, ds, shared_address(shared.q(stage)));
        fence_async_shared();
        named_barrier_sync(1, 256);
        wgmma_hold(dq);
        wgmma_fence();
        issue_queries(dq, buffer + dq_ds, dq_k);
        wgmma_wait<1>();
        wgmma_hold(dk);
        wgmma_hold(dv);
        wgmma_hold(weights);
        wgmma_hold(ds);
        if (lane == 0) {
          mbarrier_arrive(&barriers.q_empty[stage]);
          mbarrier_arrive(&barriers.dout_empty[stage]);
        }
        const int64_t place_of_sum =
            (int64_t{work.batch} * params.problem.heads + head) * params.query_tiles + t;
        float* sum =
            params.dq + place_of_sum * (Shape::kQueries * Shape::kDim) + group * 4096 + thread * 4;
        int32_t* turn = nullptr;
        int32_t rank = 0;
        if (params.turns != nullptr) {
          turn = params.turns + 2 * place_of_sum + group;
          rank = backward_rank<Shape>(params, work, t);
        }
        place.advance();
        if (++t == work.end) {
          t = work.begin;
          ++head;
        }
        // After the last step these scores are computed from a stale tile and never used: cheaper
        // than a second loop body.
        if (step + 1 < count) {
          mbarrier_wait(&barriers.q_full[place.stage], place.parity);
        }
        wgmma_hold(scores);
        wgmma_fence();
        issue_scores(scores, own_k, shared_address(shared.q(place.stage)));
        wgmma_wait<1>();
        wgmma_hold(dq);
        if (turn != nullptr) {
          if (thread == 0) {
            wait_for_turn(turn, rank);
          }
          named_barrier_sync(2 + group, 128);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          reduce_add_f32x4(sum + 512 * i, dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
        }
        if (turn != nullptr) {
          __threadfence();
          named_barrier_sync(2 + group, 128);
          if (thread == 0) {
            end_turn(turn);
          }
        }
      }
      wgmma_wait<0>();
      wgmma_hold(scores);
    }
    const int64_t batch = params.problem.cu_key != nullptr ? 0 : work.batch;
    store(dk, params.scale,
          static_cast<T*>(params.dk) + batch * params.dk_batch + work.head * params.dk_head +
              work.sequence.key_first * params.dk_row,
          params.dk_row, own_key, work.sequence.key_rows, lane);
    store(dv, 1,
          static_cast<T*>(params.dv) + batch * params.dv_batch + work.head * params.dv_head +
              work.sequence.key_first * params.dv_row,
          params.dv_row, own_key, work.sequence.key_rows, lane);
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward_kernel(const __grid_constant__ BackwardParams params,
                              const __grid_constant__ CUtensorMap q,
                              const __grid_constant__ CUtensorMap k,
                              const __grid_constant__ CUtensorMap v,
                              const __grid_constant__ CUtensorMap dout) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const BackwardShared<Shape> shared{memory};
  BackwardBarriers<Shape>& barriers = shared.barriers();
  const BackwardWork work = backward_work<Shape>(params);
  if (work.key >= work.sequence.key_rows) {
    return;
  }
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    prefetch_tensor_map(&dout);
    mbarrier_init(&barriers.k_full, 1);
    mbarrier_init(&barriers.v_full, 1);
    for (int i = 0; i < Shape::kStages; ++i) {
      mbarrier_init(&barriers.q_full[i], 1);
      mbarrier_init(&barriers.q_empty[i], 8);
      mbarrier_init(&barriers.dout_full[i], 1);
      mbarrier_init(&barriers.dout_empty[i], 8);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<24>();
    if (work.begin < work.end) {
      const int32_t batch = params.problem.cu_key != nullptr ? 0 : work.batch;
      const int32_t row = work.sequence.key_first + work.key;
      if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&barriers.k_full, Shape::kKeyBytes);
        backward_load<Shape>(shared.k(), &k, &barriers.k_full, Shape::kKeys, row, work.head, batch);
        backward_produce<Shape>(params, work, &q, params.lse, shared.q(0), shared.lse(0),
                                barriers.q_full, barriers.q_empty);
      } else if (threadIdx.x == 32) {
        mbarrier_arrive_expect(&barriers.v_full, Shape::kKeyBytes);
        backward_load<Shape>(shared.v(), &v, &barriers.v_full, Shape::kKeys, row, work.head, batch);
        backward_produce<Shape>(params, work, &dout, params.delta, shared.dout(0), shared.delta(0),
                                barriers.dout_full, barriers.dout_empty);
      }
    }
  } else {
    register_limit_raise<240>();
    BackwardConsumer<Shape> consumer;
    consumer.run(params, work, shared, warpgroup - 1);
  }
}

}  // namespace flashloom::sm90
