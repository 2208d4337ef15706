#pragma once

#include "flashloom/cuda/ptx/cluster.cuh"
#include "flashloom/ops/attention/decode/decode_merge.cuh"

namespace flashloom::decode {

// Joining the parts of a unit. Blocks of a cluster read each other's sums from shared memory, each
// for its share of the rows and columns. Where a unit has several clusters, they leave slots in the
// workspace, and for each share the last block to arrive joins the clusters': nothing is joined by
// one block alone. Always in the order of the keys.

/// A block's share of a unit's results: items [first, end), four columns of a row each.
struct Share {
  int32_t first, end;
};

template <class Shape>
__device__ __forceinline__ Share share_of(const Params& params, const Part& own) {
  const int32_t items = own.work.row_count * (Shape::kDim / 4);
  const int32_t each = (items + params.cluster - 1) / params.cluster;
  const int32_t first = min(static_cast<int32_t>(cuda::cluster_rank()) * each, items);
  return {first, min(first + each, items)};
}

/// Arrivals of the clusters at the block's share.
__device__ __forceinline__ unsigned long long* share_counter(const Params& params,
                                                             const Part& own) {
  return params.counters + int64_t{own.index} * params.cluster + cuda::cluster_rank();
}

/// stats(i) and value(i) of parts 0 to `count`, several loads at a time.
template <class Stats, class Value>
__device__ __forceinline__ JoinedRow join_many(int32_t count, float unit, Stats stats,
                                               Value value) {
  constexpr int kOnce = 8;
  JoinedRow joined;
#pragma unroll 1
  for (int32_t base = 0; base < count; base += kOnce) {
    RowStats part_stats[kOnce];
    float4 part_value[kOnce];
    float largest = kNothing;
#pragma unroll
    for (int i = 0; i < kOnce; ++i) {
      part_stats[i] = {kNothing, 0};
      part_value[i] = {0, 0, 0, 0};
      if (base + i < count) {
        part_stats[i] = stats(base + i);
        part_value[i] = value(base + i);
      }
    }
#pragma unroll
    for (int i = 0; i < kOnce; ++i) {
      largest = fmaxf(largest, part_stats[i].x);
    }
    joined.raise(largest, unit);
#pragma unroll
    for (int i = 0; i < kOnce; ++i) {
      joined.add(part_stats[i], part_value[i], unit);
    }
  }
  return joined;
}

/// Statistics of the rows of a block's share, of all blocks of the cluster: fetched once, not once
/// a column, because each is a transfer between multiprocessors.
template <class Shape>
struct ShareStats {
  // Shares cut rows, so a share has parts of up to two more than its even number.
  RowStats of[Shape::kRows + 2 * 16];

  __device__ __forceinline__ void fetch(const Params& params, const Share& share,
                                        const RowStats* stats) {
    constexpr int32_t kColumns = Shape::kDim / 4;
    const int32_t first = share.first / kColumns;
    const int32_t count = (share.end + kColumns - 1) / kColumns - first;
#pragma unroll 1
    for (auto at = static_cast<int32_t>(threadIdx.x); at < count * params.cluster;
         at += Shape::kThreads) {
      const int32_t row = at / params.cluster;
      const uint32_t address = cuda::shared_address(stats + first + row);
      of[at] = cuda::load_cluster_8(cuda::cluster_address(address, at - row * params.cluster));
    }
    __syncthreads();
  }
};

/// Four columns of a row of the cluster's sums. Each block starts with its own, so that not all
/// read from one at a time.
template <class Shape>
__device__ __forceinline__ JoinedRow join_cluster(const Params& params, const Share& share,
                                                  int32_t row, int32_t column,
                                                  const ShareStats<Shape>& stats,
                                                  const float* sums) {
  const uint32_t value_at = cuda::shared_address(sums + row * Shape::kSumPitch + column);
  const int32_t first = (row - share.first / (Shape::kDim / 4)) * params.cluster;
  const auto turned = [&](int32_t i) {
    return (i + static_cast<int32_t>(cuda::cluster_rank())) & (params.cluster - 1);
  };
  return join_many(
      params.cluster, params.unit, [&](int32_t i) { return stats.of[first + turned(i)]; },
      [&](int32_t i) { return cuda::load_cluster_16(cuda::cluster_address(value_at, turned(i))); });
}

/// A cluster's slot: the items' sums, then statistics of the rows of each share. Shares may cut a
/// row, so each has its own of it: that of `row` and the share's number.
template <class Shape>
struct ClusterSlot {
  float* sums;
  RowStats* stats;

  __device__ __forceinline__ ClusterSlot(const Params& params, const Part& own, int32_t cluster) {
    const int64_t slot = int64_t{own.index} * (params.parts / params.cluster) + cluster;
    sums = params.slots + slot * params.slot_floats;
    stats =
        reinterpret_cast<RowStats*>(sums + params.slot_rows * Shape::kDim) + cuda::cluster_rank();
  }
};

/// What becomes of a block's part: the result if it is the whole unit, else it is joined.
template <class Shape>
__device__ __forceinline__ void finish_part(const Params& params, const Part& own,
                                            const RowStats* stats, float* sums) {
  constexpr int32_t kColumns = Shape::kDim / 4;
  // A single team's sums lie there already.
  constexpr bool kJoins = Shape::kTeams > 1;
  __shared__ RowStats own_stats[kJoins ? Shape::kRows : 1];
  const RowStats* joined_stats = kJoins ? own_stats : stats;
  __shared__ ShareStats<Shape> share_stats;
  __shared__ int is_last;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const bool whole = kJoins && params.parts == 1;
#pragma unroll 1
  for (int32_t item = thread; kJoins && item < own.work.row_count * kColumns;
       item += Shape::kThreads) {
    const int32_t row = item / kColumns;
    const int32_t column = item % kColumns * 4;
    const JoinedRow joined = join_teams<Shape>(params, row, column, stats, sums);
    if (whole) {
      write_result<Shape>(params, own.unit, own.work.rows, row, column, joined);
      continue;
    }
    *reinterpret_cast<float4*>(sums + row * Shape::kSumPitch + column) = joined.value;
    if (column == 0) {
      own_stats[row] = joined.total;
    }
  }
  if (whole) {
    return;
  }
  cuda::cluster_arrive();
  cuda::cluster_wait();
  const Share share = share_of<Shape>(params, own);
  const int32_t clusters = params.parts / params.cluster;
  share_stats.fetch(params, share, joined_stats);
  // Once over the cluster's blocks and, by the last to arrive, once over the clusters.
#pragma unroll 1
  for (int level = 0; level < 2; ++level) {
    const bool final = level == 1 || clusters == 1;
#pragma unroll 1
    for (int32_t item = share.first + thread; item < share.end; item += Shape::kThreads) {
      const int32_t row = item / kColumns;
      const int32_t column = item % kColumns * 4;
      JoinedRow joined;
      if (level == 0) {
        joined = join_cluster<Shape>(params, share, row, column, share_stats, sums);
      } else {
        const ClusterSlot<Shape> first(params, own, 0);
        const int64_t step = params.slot_floats;
        joined = join_many(
            clusters, params.unit,
            [&](int32_t i) {
              return __ldcg(reinterpret_cast<const float2*>(
                  reinterpret_cast<const float*>(first.stats + row) + i * step));
            },
            [&](int32_t i) {
              return __ldcg(reinterpret_cast<const float4*>(first.sums + item * 4 + i * step));
            });
      }
      if (final) {
        write_result<Shape>(params, own.unit, own.work.rows, row, column, joined);
        continue;
      }
      const ClusterSlot<Shape> slot(params, own, own.part / params.cluster);
      *reinterpret_cast<float4*>(slot.sums + item * 4) = joined.value;
      if (column == 0 || item == share.first) {
        slot.stats[row] = joined.total;
      }
    }
    if (level == 0) {
      cuda::cluster_arrive();  // nothing of the others is read from here on
    }
    if (final) {
      break;
    }
    __threadfence();
    __syncthreads();
    if (thread == 0) {
      is_last = arrive_last(share_counter(params, own), clusters) ? 1 : 0;
      __threadfence();
    }
    __syncthreads();
    if (is_last == 0) {
      break;
    }
  }
  cuda::cluster_wait();  // shared memory stays until all have read it
}

}  // namespace flashloom::decode
