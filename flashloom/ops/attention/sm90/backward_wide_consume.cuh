#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"
#include "flashloom/ops/attention/sm90/backward_wide_shape.cuh"

// The two consumer warpgroups of the kernel for dK and dV of heads with up to 256 columns.

namespace flashloom::sm90 {

template <class Shape>
struct WideKeysConsumer {
  using T = typename Shape::T;
  static constexpr int kDim = Shape::kDim;
  static constexpr int kScores = Shape::kQueries / 2;

  const BackwardParams& params;
  const BackwardWork& work;
  const WideKeysShared<Shape>& shared;
  WideKeysBarriers<Shape>& barriers;
  uint32_t thread, lane;
  int32_t key;  // of this block, first
  KeysBorders<Shape::kQueries> borders;
  float sums[kDim / 2];

  __device__ __forceinline__ WideKeysConsumer(const BackwardParams& of, const BackwardWork& own,
                                              const WideKeysShared<Shape>& memory)
      : params(of),
        work(own),
        shared(memory),
        barriers(memory.barriers()),
        thread(threadIdx.x % 128),
        lane(threadIdx.x % 32),
        key(own.key),
        borders(of.problem, own.sequence, key) {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) {
      sums[i] = 0;
    }
  }

  __device__ __forceinline__ int32_t own_row() const {
    return key + static_cast<int32_t>(thread / 32 * 16 + lane / 4);
  }

  __device__ __forceinline__ void release(uint64_t* empty) const {
    if (lane == 0) {
      cuda::mbarrier_arrive(empty);
    }
  }

  __device__ __forceinline__ void wait_for(uint64_t* full, uint32_t parity, char* tile, int32_t t,
                                           uint32_t barrier) const {
    cuda::mbarrier_wait(full, parity, {"a consumer", "q_full or dout_full"});
    if (t == borders.tail) {
      zero_rows<Shape::kPanels>(tile, borders.tail_rows, Shape::kQueries, barrier);
    }
  }

  static __device__ __forceinline__ void issue_scores(float (&d)[kScores], uint32_t a, uint32_t b) {
    cuda::wgmma_hold(d);
    cuda::wgmma_fence();
    issue_rows_by_rows<T, kDim, Shape::kKeys, Shape::kQueries, Shape::kQueries>(d, compute_here(a),
                                                                                b);
  }

  __device__ __forceinline__ void issue_sums(const uint32_t (&a)[kScores / 2], uint32_t b) {
    cuda::wgmma_hold(sums);
    cuda::wgmma_fence();
    issue_registers_by_tile<T, kDim, Shape::kQueries>(sums, a, b);
  }

  /// Ends a basic block once all of `words` are known, so that what they are computed from stays
  /// before the wait for the product that runs beside it.
  static __device__ __forceinline__ void finish_words(const uint32_t (&words)[kScores / 2]) {
    uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      all |= words[i];
    }
    cuda::schedule_fence(__uint_as_float(all & 0x7fffffffu));
  }

  /// Raw products of tile t -> scores in powers of two.
  __device__ __forceinline__ void adjust(float (&scores)[kScores], uint32_t (&slopes)[kScores / 2],
                                         const BackwardStep& at) const {
    const BackwardScore& score = params.score;
    const float alibi =
        score.slopes != nullptr
            ? score.slopes[work.batch * score.slope_batch + at.head * score.slope_head] * kLog2e
            : 0;
    const int32_t query = at.t * Shape::kQueries + 2 * static_cast<int32_t>(lane % 4);
    const int32_t distance = own_row() - query - work.sequence.offset;
    general_scores(scores, slopes, score, params.scale, alibi, distance);
    if (score.exclude_self) {
      hide_self(scores, distance);
    }
  }

  /// P -> what dropout keeps of it, for this warpgroup, and P times the slopes, for the other.
  __device__ __forceinline__ void drop(uint32_t (&weights)[kScores / 2],
                                       const uint32_t (&slopes)[kScores / 2],
                                       const BackwardStep& at, uint32_t buffer) const {
    uint32_t kept = 0xffffffffu;
    if (params.score.seed != nullptr) {
      const auto query = static_cast<uint32_t>(work.sequence.query_start + at.t * Shape::kQueries +
                                               2 * static_cast<int32_t>(lane % 4));
      const Problem& problem = params.problem;
      kept = kept_by_dropout<kScores>(params.score, static_cast<uint32_t>(work.batch),
                                      static_cast<uint32_t>(at.head), query,
                                      static_cast<uint32_t>(problem.key_start + own_row()),
                                      static_cast<uint32_t>(problem.key_start));
    }
    shared.kept(buffer)[thread] = kept;
    uint32_t own[kScores / 2];
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      own[i] = (weights[i] & ((kept >> (2 * i) & 1) != 0 ? 0xffffu : 0u)) |
               (weights[i] & ((kept >> (2 * i + 1) & 1) != 0 ? 0xffff0000u : 0u));
      float p[2], slope[2];
      cuda::unpack2<T>(weights[i], p[0], p[1]);
      cuda::unpack2<__half>(slopes[i], slope[0], slope[1]);
      weights[i] = cuda::pack2<T>(p[0] * slope[0], p[1] * slope[1]);
    }
    write_words(own, shared.dropped());
  }

  __device__ __forceinline__ void write_words(const uint32_t (&words)[kScores / 2],
                                              char* buffer) const {
    auto* to = reinterpret_cast<uint4*>(buffer) + thread;
#pragma unroll
    for (int i = 0; i < kScores / 8; ++i) {
      to[128 * i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
  }

  __device__ __forceinline__ void read_words(uint32_t (&words)[kScores / 2],
                                             const char* buffer) const {
    const uint32_t from = cuda::shared_address(buffer) + 16 * thread;
#pragma unroll
    for (int i = 0; i < kScores / 8; ++i) {
      const uint4 four = cuda::load_shared_16(from + 2048 * i);
      words[4 * i] = four.x;
      words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z;
      words[4 * i + 3] = four.w;
    }
  }

  /// Scores -> P of a tile, in shared memory for both warpgroups: registers of a product that runs
  /// must not be touched.
  __device__ __forceinline__ void finish_scores(float (&scores)[kScores], const BackwardStep& at,
                                                uint32_t stage, uint32_t step) const {
    using namespace cuda;
    uint32_t weights[kScores / 2];
    uint32_t slopes[kScores / 2];
    const uint32_t buffer = step % 2;
    wgmma_hold(scores);
    float factor = params.scale * kLog2e;
    if constexpr (Shape::kAdjusts) {
      adjust(scores, slopes, at);
      factor = 1;
    }
    if (at.t < borders.open || at.t >= borders.closed) {
      hide_queries(scores, work.sequence, own_row(), at.t * Shape::kQueries, lane);
    }
    exponentials<T>(scores, weights, factor, shared.lse(stage) + 2 * (lane % 4));
    mbarrier_wait(&barriers.weights_empty[buffer], (step / 2 % 2) ^ 1, {"values", "weights_empty"});
    if constexpr (Shape::kAdjusts) {
      drop(weights, slopes, at, buffer);
    }
    write_words(weights, shared.weights(buffer));
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&barriers.weights_full[buffer]);
    }
    release(&barriers.q_empty[stage]);
    finish_words(weights);
  }

  __device__ __forceinline__ void read_weights(uint32_t (&weights)[kScores / 2],
                                               uint32_t step) const {
    if constexpr (Shape::kAdjusts) {
      read_words(weights, shared.dropped());
    } else {
      read_words(weights, shared.weights(step % 2));
    }
  }

  /// dP -> dS, in place, once P is there.
  __device__ __forceinline__ void finish_gradients(float (&dp)[kScores], uint32_t stage,
                                                   uint32_t step) const {
    using namespace cuda;
    const uint32_t buffer = step % 2;
    mbarrier_wait(&barriers.weights_full[buffer], step / 2 % 2, {"keys", "weights_full"});
    uint32_t weights[kScores / 2];
    read_words(weights, shared.weights(buffer));
    uint32_t kept = 0xffffffffu;
    if constexpr (Shape::kAdjusts) {
      kept = shared.kept(buffer)[thread];
    }
    wgmma_hold(dp);
    const float* delta = shared.delta(stage) + 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < kScores / 4; ++j) {
      const float2 shift = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * j + 2 * half;
        float p[2];
        unpack2<T>(weights[at / 2], p[0], p[1]);
        if constexpr (Shape::kAdjusts) {
          const float keep = params.score.keep;
          dp[at] = (kept >> at & 1) != 0 ? dp[at] * keep : 0;
          dp[at + 1] = (kept >> (at + 1) & 1) != 0 ? dp[at + 1] * keep : 0;
        }
        dp[at] = p[0] * (dp[at] - shift.x);
        dp[at + 1] = p[1] * (dp[at + 1] - shift.y);
      }
    }
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&barriers.weights_empty[buffer]);
    }
    release(&barriers.dout_empty[stage]);
    uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      all |= __float_as_uint(dp[i]);
    }
    schedule_fence(__uint_as_float(all & 0x7fffffffu));
  }

  static __device__ __forceinline__ void pack_gradients(uint32_t (&ds)[kScores / 2],
                                                        const float (&dp)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      ds[i] = cuda::pack2<T>(dp[2 * i], dp[2 * i + 1]);
    }
  }

  /// The warpgroup of P and dV.
  __device__ __forceinline__ void run_values() {
    using namespace cuda;
    constexpr uint32_t kRowBarrier = 2;
    BackwardWalk<Shape> walk;
    if (!walk.start(params, work)) {
      return;
    }
    const uint32_t k = shared_address(shared.k());
    float scores[kScores];
    uint32_t weights[kScores / 2];
    PipelineState<Shape::kStages> place;
    uint32_t step = 0;
    mbarrier_wait(&barriers.k_full, 0, {"values", "k_full"});
    wait_for(&barriers.q_full[0], 0, shared.q(0), walk.t, kRowBarrier);
    issue_scores(scores, k, shared_address(shared.q(0)));
    wgmma_wait<0>();
    finish_scores(scores, walk, 0, 0);
    read_weights(weights, 0);
    while (true) {
      const uint32_t stage = place.stage;
      const uint32_t parity = place.parity;
      const int32_t t = walk.t;
      ++step;
      place.advance();
      if (!walk.advance(params, work)) {
        wait_for(&barriers.dout_full[stage], parity, shared.dout(stage), t, kRowBarrier);
        issue_sums(weights, shared_address(shared.dout(stage)));
        break;
      }
      auto issue_next = [&] {
        wait_for(&barriers.q_full[place.stage], place.parity, shared.q(place.stage), walk.t,
                 kRowBarrier);
        issue_scores(scores, k, shared_address(shared.q(place.stage)));
      };
      auto issue_last = [&] {
        wait_for(&barriers.dout_full[stage], parity, shared.dout(stage), t, kRowBarrier);
        issue_sums(weights, shared_address(shared.dout(stage)));
      };
      wgmma_hold(weights);
      wgmma_hold(sums);
      if constexpr (Shape::kSumsFirst) {
        issue_last();
        issue_next();
        wgmma_wait<1>();
        wgmma_hold(sums);
        wgmma_hold(weights);
        release(&barriers.dout_empty[stage]);
        wgmma_wait<0>();
        finish_scores(scores, walk, place.stage, step);
      } else {
        issue_next();
        issue_last();
        wgmma_wait<1>();
        finish_scores(scores, walk, place.stage, step);
        wgmma_wait<0>();
        wgmma_hold(sums);
        wgmma_hold(weights);
        release(&barriers.dout_empty[stage]);
      }
      read_weights(weights, step);
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(weights);
  }

  /// The warpgroup of dP, dS and dK.
  __device__ __forceinline__ void run_keys() {
    using namespace cuda;
    constexpr uint32_t kRowBarrier = 3;
    BackwardWalk<Shape> walk;
    if (!walk.start(params, work)) {
      return;
    }
    const uint32_t v = shared_address(shared.v());
    float dp[kScores];
    uint32_t ds[kScores / 2];
    PipelineState<Shape::kStages> place;
    uint32_t step = 0;
    mbarrier_wait(&barriers.v_full, 0, {"keys", "v_full"});
    wait_for(&barriers.dout_full[0], 0, shared.dout(0), walk.t, kRowBarrier);
    issue_scores(dp, v, shared_address(shared.dout(0)));
    wgmma_wait<0>();
    finish_gradients(dp, 0, 0);
    pack_gradients(ds, dp);
    while (true) {
      const uint32_t stage = place.stage;
      // The other warpgroup has zeroed rows of this tile before it handed P over.
      mbarrier_wait(&barriers.q_full[stage], place.parity, {"keys", "q_full"});
      ++step;
      place.advance();
      if (!walk.advance(params, work)) {
        issue_sums(ds, shared_address(shared.q(stage)));
        break;
      }
      auto issue_next = [&] {
        wait_for(&barriers.dout_full[place.stage], place.parity, shared.dout(place.stage), walk.t,
                 kRowBarrier);
        issue_scores(dp, v, shared_address(shared.dout(place.stage)));
      };
      wgmma_hold(ds);
      wgmma_hold(sums);
      if constexpr (Shape::kSumsFirst) {
        issue_sums(ds, shared_address(shared.q(stage)));
        issue_next();
        wgmma_wait<1>();
        wgmma_hold(sums);
        wgmma_hold(ds);
        release(&barriers.q_empty[stage]);
        wgmma_wait<0>();
        finish_gradients(dp, place.stage, step);
      } else {
        issue_next();
        issue_sums(ds, shared_address(shared.q(stage)));
        wgmma_wait<1>();
        finish_gradients(dp, place.stage, step);
        wgmma_wait<0>();
        wgmma_hold(sums);
        wgmma_hold(ds);
        release(&barriers.q_empty[stage]);
      }
      pack_gradients(ds, dp);
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(ds);
  }

  __device__ __forceinline__ void store(const RowTensor& out, float factor, int32_t columns) const {
    const Sequence& sequence = work.sequence;
    store_rows<T, kDim>(sums, factor, out, params.problem.cu_key != nullptr ? 0 : work.batch,
                        work.head, sequence.key_first, own_row(), sequence.key_length,
                        sequence.key_rows, params.accumulate, true, columns, lane);
  }
};

}  // namespace flashloom::sm90
