#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_hide.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"
#include "flashloom/ops/attention/sm90/backward_wide_shape.cuh"

// What happens to one tile of scores or of their gradients in the kernel for dK and dV of heads
// with up to 256 columns: both consumer warpgroups have 64 keys x 64 queries, in the same places.

namespace flashloom::sm90 {

template <class Shape>
struct WideKeysTile {
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

  __device__ __forceinline__ WideKeysTile(const BackwardParams& of, const BackwardWork& own,
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

  /// Ends a basic block once all of `values` are known, so that their arithmetic stays before the
  /// wait for the product that runs beside it.
  static __device__ __forceinline__ void finish_values(const float (&values)[kScores]) {
    uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      all |= __float_as_uint(values[i]);
    }
    cuda::schedule_fence(__uint_as_float(all & 0x7fffffffu));
  }

  /// Which elements dropout keeps, for both warpgroups.
  __device__ __forceinline__ uint32_t draw(const BackwardStep& at, uint32_t buffer) const {
    const uint32_t kept =
        params.score.seed == nullptr
            ? 0xffffffffu
            : kept_of_step<kScores>(params, work, at.head, own_row(), at.t * Shape::kQueries, lane);
    shared.kept(buffer)[thread] = kept;
    return kept;
  }

  /// Scores -> P of a tile, in place and, times the slopes, in shared memory for the other
  /// warpgroup.
  __device__ __forceinline__ void finish_scores(float (&scores)[kScores], uint32_t& kept,
                                                const BackwardStep& at, uint32_t stage,
                                                uint32_t step) const {
    using namespace cuda;
    uint32_t slopes[kScores / 2];
    const uint32_t buffer = step % 2;
    wgmma_hold(scores);
    float factor = params.scale * kLog2e;
    if constexpr (Shape::kAdjusts) {
      adjust_scores<Shape>(scores, slopes, params, work, at.head, own_row(), at.t * Shape::kQueries,
                           lane);
      factor = 1;
    }
    if (at.t < borders.open || at.t >= borders.closed) {
      hide_queries(scores, work.sequence, own_row(), at.t * Shape::kQueries, lane);
    }
    const float* lse = shared.lse(stage) + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const float2 shift = *reinterpret_cast<const float2*>(lse + i / 4 * 8);
      scores[i] = exp2_fast(fmaf(scores[i], factor, -shift.x));
      scores[i + 1] = exp2_fast(fmaf(scores[i + 1], factor, -shift.y));
    }
    mbarrier_wait(&barriers.weights_empty[buffer], (step / 2 % 2) ^ 1, {"values", "weights_empty"});
    if constexpr (Shape::kAdjusts) {
      kept = draw(at, buffer);
    }
    auto* to = reinterpret_cast<float4*>(shared.weights(buffer)) + thread;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      float4 p = {scores[4 * i], scores[4 * i + 1], scores[4 * i + 2], scores[4 * i + 3]};
      if constexpr (Shape::kAdjusts) {
        float2 slope[2];
        unpack2<__half>(slopes[2 * i], slope[0].x, slope[0].y);
        unpack2<__half>(slopes[2 * i + 1], slope[1].x, slope[1].y);
        p = {p.x * slope[0].x, p.y * slope[0].y, p.z * slope[1].x, p.w * slope[1].y};
      }
      to[128 * i] = p;
    }
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&barriers.weights_full[buffer]);
    }
    release(&barriers.q_empty[stage]);
    finish_values(scores);
  }

  /// What dropout keeps of P, as an operand. Only once the product that reads `weights` is done:
  /// its registers must not be touched before.
  static __device__ __forceinline__ void pack_weights(uint32_t (&weights)[kScores / 2],
                                                      const float (&p)[kScores], uint32_t kept) {
    round_to<T>(weights, p);
    if constexpr (Shape::kAdjusts) {
      drop_pairs(weights, kept);
    }
  }

  /// dP -> dS, in place, once P is there.
  __device__ __forceinline__ void finish_gradients(float (&dp)[kScores], uint32_t stage,
                                                   uint32_t step) const {
    using namespace cuda;
    const uint32_t buffer = step % 2;
    mbarrier_wait(&barriers.weights_full[buffer], step / 2 % 2, {"keys", "weights_full"});
    uint32_t kept = 0xffffffffu;
    if constexpr (Shape::kAdjusts) {
      kept = shared.kept(buffer)[thread];
    }
    wgmma_hold(dp);
    const float* delta = shared.delta(stage) + 2 * (lane % 4);
    const auto* from = reinterpret_cast<const float4*>(shared.weights(buffer)) + thread;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      const float2 shift = *reinterpret_cast<const float2*>(delta + 2 * i);
      if constexpr (Shape::kAdjusts) {
#pragma unroll
        for (int c = i; c < i + 4; ++c) {
          dp[c] = (kept >> c & 1) != 0 ? dp[c] * params.score.keep : 0;
        }
      }
      const float4 p = from[32 * i];
      dp[i] = p.x * (dp[i] - shift.x);
      dp[i + 1] = p.y * (dp[i + 1] - shift.y);
      dp[i + 2] = p.z * (dp[i + 2] - shift.x);
      dp[i + 3] = p.w * (dp[i + 3] - shift.y);
    }
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&barriers.weights_empty[buffer]);
    }
    release(&barriers.dout_empty[stage]);
    finish_values(dp);
  }

  static __device__ __forceinline__ void pack_gradients(uint32_t (&ds)[kScores / 2],
                                                        const float (&dp)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      ds[i] = cuda::pack2<T>(dp[2 * i], dp[2 * i + 1]);
    }
  }
};

}  // namespace flashloom::sm90
