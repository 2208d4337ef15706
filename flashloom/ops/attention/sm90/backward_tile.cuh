#pragma once

#include <cstdint>
#include <type_traits>

#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"

// What a consumer warpgroup of the backward kernel does with one tile of queries.

namespace flashloom::sm90 {

template <class Shape>
struct BackwardTile {
  using T = typename Shape::T;
  static constexpr int kQueries = Shape::kQueries;
  static constexpr int kDim = Shape::kDim;
  static constexpr int kScores = kQueries / 2;
  static constexpr int kSums = Shape::kQueryColumns / 2;
  using Panels = typename Shape::Panels;

  static __device__ __forceinline__ void issue_scores(float (&d)[kScores], uint32_t a, uint32_t b) {
    issue_rows_by_rows<T, kDim, Shape::kKeys, kQueries, kQueries, Panels>(d, a, b);
  }

  /// dP.
  static __device__ __forceinline__ void issue_values(float (&d)[kScores], uint32_t a, uint32_t b) {
    issue_rows_by_rows<T, kDim, Shape::kKeys, kQueries, kQueries, Panels>(d, a, b);
  }

  static __device__ __forceinline__ void issue_keys(float (&d)[kDim / 2],
                                                    const uint32_t (&a)[kScores / 2], uint32_t b) {
    issue_registers_by_tile<T, kDim, kQueries, Panels>(d, a, b);
  }

  /// This warpgroup's part of dQ from dS (keys x queries) and K: 64 queries x 64 columns, or
  /// 64 columns x queries if swapped.
  static __device__ __forceinline__ void issue_queries(float (&d)[kSums], uint32_t ds, uint32_t k) {
    using Scores = typename Shape::ScorePanels;
    if constexpr (Shape::kSwapped) {
      issue_columns_by_columns<T, Shape::kKeys, Shape::kQueryColumns, false, Panels, Scores>(d, k,
                                                                                             ds);
    } else {
      issue_columns_by_columns<T, Shape::kKeys, Shape::kQueryColumns, false, Scores, Panels>(d, ds,
                                                                                             k);
    }
  }

  /// dS = P (dP - delta), rounded, of P as it is before it is rounded for dV. In general scores dP
  /// is what dropout keeps of it, and `slopes` follow.
  static __device__ __forceinline__ void gradients(uint32_t (&ds)[kScores / 2],
                                                   const float (&weights)[kScores],
                                                   const float (&dp)[kScores], const float* delta,
                                                   const uint32_t (&slopes)[kScores / 2],
                                                   uint32_t kept, float keep) {
    using namespace cuda;
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      const float2 less = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * j + 2 * half;
        float p[2] = {weights[at], weights[at + 1]};
        float x = dp[at], y = dp[at + 1];
        if constexpr (Shape::kAdjusts) {
          float slope[2];
          unpack2<__half>(slopes[at / 2], slope[0], slope[1]);
          p[0] *= slope[0];
          p[1] *= slope[1];
          x = (kept >> at & 1) != 0 ? x * keep : 0;
          y = (kept >> (at + 1) & 1) != 0 ? y * keep : 0;
        }
        ds[at / 2] = pack2<T>(p[0] * (x - less.x), p[1] * (y - less.y));
      }
    }
  }

  /// dP -> what dropout keeps of it, less dentropy ln P (delta holds dentropy times the entropy).
  static __device__ __forceinline__ void add_entropy(float (&dp)[kScores],
                                                     const float (&weights)[kScores],
                                                     const float* dentropy, uint32_t kept,
                                                     float keep) {
    constexpr float kLn2 = 0.69314718055994531f;
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      const float2 factor = *reinterpret_cast<const float2*>(dentropy + 8 * (i / 2));
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = dp[2 * i + c];
        x = (kept >> (2 * i + c) & 1) != 0 ? x * keep : 0;
        const float p = weights[2 * i + c];
        const float log = p > 0 ? __log2f(p) * kLn2 : 0;
        x = fmaf(c == 0 ? -factor.x : -factor.y, log, x);
      }
    }
  }

  static __device__ __forceinline__ void store_gradients(const uint32_t (&ds)[kScores / 2],
                                                         uint32_t buffer, uint32_t row,
                                                         uint32_t lane) {
#pragma unroll
    for (int i = 0; i < kQueries / 16; ++i) {
      const uint32_t column = 16 * i + 8 * (lane / 16);
      const uint32_t place = Shape::ScorePanels::offset(row, column, Shape::kKeys);
      cuda::stmatrix_x4(buffer + place, ds[4 * i], ds[4 * i + 1], ds[4 * i + 2], ds[4 * i + 3]);
    }
  }

  /// Leaves this warpgroup's part of dQ to the thread that adds it to the others.
  static __device__ __forceinline__ void give(const float (&dq)[kSums],
                                              const BackwardShared<Shape>& shared, int32_t group,
                                              const cuda::PipelineState<Shape::kSumStages>& place,
                                              uint32_t thread) {
    using namespace cuda;
    BackwardBarriers<Shape>& barriers = shared.barriers();
    mbarrier_wait(&barriers.sum_empty[group][place.stage], place.parity ^ 1,
                  {"a consumer", "sum_empty"});
    auto* to = reinterpret_cast<float4*>(shared.sum(group, place.stage)) + thread;
    auto store = [&](auto threads) {
#pragma unroll
      for (int i = 0; i < kSums / 4; ++i) {
        to[threads * i] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
      }
    };
    if (!Shape::kHalfRows || group == 0) {
      store(std::integral_constant<int, 128>());
    } else if (thread < 64) {  // 32 rows
      store(std::integral_constant<int, 64>());
    }
    fence_async_shared();
    __syncwarp();
    if (thread % 32 == 0) {
      mbarrier_arrive(&barriers.sum_full[group][place.stage]);
    }
  }
};

}  // namespace flashloom::sm90
