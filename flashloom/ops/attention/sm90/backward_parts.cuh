#pragma once

#include <algorithm>
#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/ops/attention/sm90/backward_call.cuh"
#include "flashloom/ops/attention/sm90/backward_counts.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"

// The last tiles of keys where all is visible. Blocks are equally long, so that the last ones leave
// multiprocessors idle (2048 are 15.5 rounds of 132); the tiles of the last round are therefore
// walked by several blocks each, a part of the queries a block, in a kernel behind the others that
// starts as those end.

namespace flashloom::sm90 {

/// Into how many blocks the last of `tiles` tiles of keys are split, if `all` run at a time.
inline BackwardSplit split_tiles(int64_t tiles, int32_t all) {
  // Blocks that start late, behind the preparing of rows, must not find whole tiles at the end.
  const int64_t last = std::min(tiles, tiles % all + all / 8);
  BackwardSplit split = {static_cast<int32_t>(tiles), 1, 0};
  // A part costs its start and end, and sums through memory, some 2 % of a tile.
  constexpr double kCost = 0.02, kGain = 0.1;
  double best = static_cast<double>((last + all - 1) / all) - kGain;
  for (int32_t parts = 2; parts <= 4 && 2 * parts * last <= int64_t{5} * all; ++parts) {
    const int64_t rounds = (parts * last + all - 1) / all;
    const double length = static_cast<double>(rounds) * (1.0 / parts + kCost);
    if (length < best) {
      best = length;
      split = {static_cast<int32_t>(tiles - last), parts, static_cast<int32_t>(last)};
    }
  }
  return split;
}

/// That of a call; where all is visible tiles have as many queries each. For an H100; another GPU
/// takes the same, so that dk and dv are the same bits, and the workspace does not depend on it,
/// nor on the mode: kernels in turn do not split.
template <class Shape>
BackwardSplit backward_split(const Problem& problem, const AttentionOptions& options) {
  constexpr int32_t kBlocks = 132;
  constexpr int32_t kSteps = 64;  // with fewer blocks stay, or would have little to share
  const int64_t tiles = backward_heads(problem) * backward_key_tiles(problem, Shape::kKeys);
  const bool full = options.visibility.left < 0 && options.visibility.right < 0;
  const bool plain = problem.cu_key == nullptr && problem.cu_query == nullptr &&
                     problem.used_key == nullptr && problem.used_query == nullptr;
  const bool many = problem.query_length / Shape::kQueries >= kSteps;
  return Shape::kSplits && full && plain && many ? split_tiles(tiles, kBlocks)
                                                 : BackwardSplit{static_cast<int32_t>(tiles), 1, 0};
}

/// The work of block `index`: a tile of keys, or a part of one.
template <class Shape>
__device__ __forceinline__ BackwardWork backward_work_of_block(const BackwardParams& params,
                                                               int32_t index) {
  if constexpr (!Shape::kParts) {
    return backward_work<Shape>(params, index);
  }
  const int32_t tile = params.parts.quotient(index);
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  const int32_t part = index - tile * parts;
  BackwardWork work = backward_work<Shape>(params, params.whole + tile);
  const int32_t steps = work.end - work.begin;
  work.end = work.begin + steps * (part + 1) / parts;
  work.begin += steps * part / parts;
  work.first = work.begin + place_in_circle(work.key / Shape::kKeys, params.key_tiles,
                                            params.circle, work.end - work.begin);
  return work;
}

/// Leaves a warpgroup's dk and dv of a part in memory. The last one to come adds up those of all
/// parts, in their order, so that the bits do not depend on which it is. Whether it is this one.
template <class Shape>
__device__ __forceinline__ bool join_parts(const BackwardParams& params,
                                           const BackwardShared<Shape>& shared, int32_t group,
                                           float (&dk)[Shape::kDim / 2],
                                           float (&dv)[Shape::kDim / 2]) {
  using namespace cuda;
  constexpr int kVectors = Shape::kDim / 8;  // of four sums, of dk and of dv each
  const auto index = static_cast<int32_t>(blockIdx.x);
  const int32_t tile = params.parts.quotient(index);
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  const int32_t part = index - tile * parts;
  const int32_t thread = threadIdx.x % 128;
  float4* sums = reinterpret_cast<float4*>(params.part_sums) +
                 int64_t{2 * tile + group} * parts * (2 * kVectors * 128) + thread;
  float4* own = sums + part * (2 * kVectors * 128);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    __stcg(own + 128 * i, make_float4(dk[4 * i], dk[4 * i + 1], dk[4 * i + 2], dk[4 * i + 3]));
    __stcg(own + 128 * (kVectors + i),
           make_float4(dv[4 * i], dv[4 * i + 1], dv[4 * i + 2], dv[4 * i + 3]));
  }
  __threadfence();
  const auto barrier = static_cast<uint32_t>(2 + group);
  named_barrier_sync(barrier, 128, {"a consumer", "its warpgroup's part"});
  int32_t& before = shared.barriers().parts_before[group];
  if (thread == 0) {
    before = count_acquire_release(params.part_counts + 2 * tile + group);
  }
  named_barrier_sync(barrier, 128, {"a consumer", "the count of parts"});
  if (before != parts - 1) {
    return false;
  }
  __threadfence();
#pragma unroll
  for (int i = 0; i < Shape::kDim / 2; ++i) {
    dk[i] = dv[i] = 0;
  }
#pragma unroll 1
  for (int32_t p = 0; p < parts; ++p, sums += 2 * kVectors * 128) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const float4 x = __ldcg(sums + 128 * i);
      const float4 y = __ldcg(sums + 128 * (kVectors + i));
      dk[4 * i] += x.x;
      dk[4 * i + 1] += x.y;
      dk[4 * i + 2] += x.z;
      dk[4 * i + 3] += x.w;
      dv[4 * i] += y.x;
      dv[4 * i + 1] += y.y;
      dv[4 * i + 2] += y.z;
      dv[4 * i + 3] += y.w;
    }
  }
  return true;
}

}  // namespace flashloom::sm90
