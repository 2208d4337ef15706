#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/movmatrix.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_pieces.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"

// What must be done before and after the steps that see a tile of 128 queries: delta, lse and
// cleared sums, and dq from its sums.

namespace flashloom::sm90 {

/// In turn the sums of dQ have so many copies, to which tiles of keys add one after the other (the
/// n-th that adds to a row to the n-th), so that fewer wait for each other.
inline constexpr int32_t kSumCopies = 2;

/// For the kernel that walks lists with blocks that stay. A job is a tile of 128 queries of a
/// query head; the sums of those of heads to come are cleared beside the tiles of keys, so many a
/// tile. `ended` takes 1 for each tile of keys that is done, in turn 2.
struct BackwardListParams : BackwardParams {
  BackwardRowParams rows;
  int32_t* cleared_jobs;      // by key-value head, zero: those cleared beside the tiles of keys
  int32_t jobs, jobs_a_head;  // in all; of a key-value head
  int32_t jobs_a_tile;
  int32_t prepared, cleared;  // of those in all, by the kernel before
  // In turn: `added` holds a number a piece (at 64 columns a warpgroup's part) and copy of the
  // sums, in their order.
  int32_t counts_a_copy;
  int4* turns;  // by list and entry: row, rank and entry, as tiles of keys walk the list
  int32_t lists, lists_a_batch;  // lists that have an order of their own
  int32_t* room;                 // a number a row and list
  int32_t sorted;  // the first tile of keys of those that come by the lengths of their lists
};

/// A job's place: a query head among all and a tile of its queries.
struct BackwardJob {
  int32_t batch, head, tile, index;  // index: of the head among all

  __device__ __forceinline__ BackwardJob(const BackwardListParams& params, int32_t job) {
    index = job / params.query_tiles;
    tile = job - index * params.query_tiles;
    batch = index / params.problem.heads;
    head = index - batch * params.problem.heads;
  }
};

/// Sums of dQ, in the order of accumulator fragments, from piece `piece` of head `head` of all on.
/// Up to 64 columns a tile of 128 queries is one piece of memory, half of the queries a warpgroup;
/// else a warpgroup's 64 columns of a head are.
template <int kDim>
__device__ __forceinline__ int64_t sums_at(const BackwardParams& params, int32_t head,
                                           int32_t piece, int32_t group) {
  constexpr int64_t kFloats = kPieceRows * 64;
  if constexpr (kDim == 64) {
    return (int64_t{head} * head_pieces(params) + piece) * kFloats + group * (kPlaceRows / 2 * 64);
  }
  return ((int64_t{2} * head + group) * head_pieces(params) + piece) * kFloats;
}

__device__ __forceinline__ int32_t lane_anew() {
  uint32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return static_cast<int32_t>(thread % 32);
}

/// Thread `thread` of `threads`: nothing in the sums of a job's queries.
template <int kDim>
__device__ __forceinline__ void clear_sums(const BackwardListParams& params, int32_t number,
                                           int32_t thread, int32_t threads) {
  const BackwardJob job(params, number);
#pragma unroll 1
  for (int32_t group = 0; group < 2; ++group) {
    auto* sums = reinterpret_cast<float4*>(
        params.dq + sums_at<kDim>(params, job.index, job.tile * kPlacePieces, group));
#pragma unroll 4
    for (int32_t i = thread; i < kPlaceRows * kDim / 8; i += threads) {
      sums[i] = make_float4(0, 0, 0, 0);
    }
  }
}

/// Warp `part` of `kParts`: lse and delta of a job's queries.
template <class T, int kDim, int kParts>
__device__ __forceinline__ void prepare_job(const BackwardListParams& params, int32_t number,
                                            int32_t part) {
  const BackwardRowParams& rows = params.rows;
  const BackwardJob job(params, number);
  constexpr int kLanes = row_lanes(kDim);
  constexpr int kRows = 32 / kLanes;  // at a time
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t column = lane % kLanes * 8;
  const int64_t first = int64_t{job.index} * params.query_tiles * kPlaceRows;
#pragma unroll
  for (int32_t i = 0; i < kPlaceRows / kParts; i += kRows) {
    const int32_t query = job.tile * kPlaceRows + part * (kPlaceRows / kParts) + i + lane / kLanes;
    const bool exists = query < params.problem.query_length;
    float sum = 0;
    if (exists) {
      sum = row_product<T>(*reinterpret_cast<const uint4*>(
                               rows.out.at<uint16_t>(job.batch, job.head, query) + column),
                           *reinterpret_cast<const uint4*>(
                               rows.dout.at<uint16_t>(job.batch, job.head, query) + column));
    }
    // In this order backward_beside.cu adds up too: a row's number must not depend on who does it.
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (column == 0) {
      float lse = INFINITY;
      if (exists) {
        lse = *rows.lse.at<const float>(job.batch, job.head, query) * kLog2e;
        lse = lse == -INFINITY ? INFINITY : lse;
        if (rows.dlse.data != nullptr) {
          sum -= *rows.dlse.at<const float>(job.batch, job.head, query);
        }
      }
      rows.padded_lse[first + query] = lse;
      rows.delta[first + query] = sum;
    }
  }
}

/// Warp `part` of `kParts`: a job's dq = scale x sums.
template <class T, int kDim, int kParts, bool kInTurn>
__device__ __forceinline__ void finish_job(const BackwardListParams& params, int32_t number,
                                           int32_t part) {
  using namespace cuda;
  const BackwardRowParams& rows = params.rows;
  const BackwardJob job(params, number);
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  constexpr int kUnits = kPlaceRows * kDim / 512 / kParts;  // of 512 sums, by one warp
  constexpr int kGroupUnits = kPlaceRows * kDim / 1024;
#pragma unroll
  for (int32_t i = 0; i < kUnits; ++i) {
    const int32_t group = (part * kUnits + i) / kGroupUnits;
    const int32_t unit = (part * kUnits + i) % kGroupUnits;
    // Of 64 columns: 16 queries (a warp's) x 32 columns, queries lane / 4 and 8 behind it, columns
    // 2 (lane % 4) and the next of each 8. Else 64 columns x 8 queries, transposed: columns lane
    // / 4 and 8 behind it of each 16, queries 2 (lane % 4) and the next.
    const auto* sums =
        reinterpret_cast<const float4*>(
            params.dq + sums_at<kDim>(params, job.index, job.tile * kPlacePieces, group)) +
        (kDim == 64 ? unit / 2 * 32 + unit % 2 * (4 * 128) : unit * 128) + lane;
    uint32_t words[2][4];
    float4 four[4];
    auto load = [&](int64_t behind) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        four[e] = __ldcg(sums + behind + (kDim == 64 ? 128 : 32) * e);
      }
    };
    if constexpr (kInTurn) {
      // Nothing was cleared: what nobody added to holds anything.
      constexpr int64_t kVectors = kDim == 64 ? 1024 : 256;  // of a count
      const int32_t place = kDim == 64 ? 2 * number + group
                                       : (2 * job.index + group) * head_pieces(params) +
                                             job.tile * kPlacePieces + unit / 2;
      float4 total[4] = {};
#pragma unroll
      for (int copy = 0; copy < kSumCopies; ++copy) {
        const int64_t behind = int64_t{copy} * params.counts_a_copy;
        if (__ldcg(params.added + behind + place) != 0) {
          load(behind * kVectors);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            total[e] = make_float4(total[e].x + four[e].x, total[e].y + four[e].y,
                                   total[e].z + four[e].z, total[e].w + four[e].w);
          }
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        four[e] = total[e];
      }
    } else {
      load(0);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float4 sum = four[e];
      const uint32_t first = pack2<T>(sum.x * params.scale, sum.y * params.scale);
      const uint32_t second = pack2<T>(sum.z * params.scale, sum.w * params.scale);
      if constexpr (kDim == 64) {
        words[0][e] = first;
        words[1][e] = second;
      } else {
        words[e / 2][e % 2 * 2] = transpose_8x8(first);
        words[e / 2][e % 2 * 2 + 1] = transpose_8x8(second);
      }
    }
    quad_transpose(words[0], static_cast<uint32_t>(lane));
    quad_transpose(words[1], static_cast<uint32_t>(lane));
    const int32_t query =
        job.tile * kPlaceRows + lane / 4 + (kDim == 64 ? group * 64 + unit / 2 * 16 : unit * 8);
    const int32_t column = lane % 4 * 8 + (kDim == 64 ? unit % 2 * 32 : group * 64);
    T* to = rows.dq.at<T>(job.batch, job.head, query) + column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (query + (kDim == 64 ? 8 * half : 0) < params.problem.query_length) {
        *reinterpret_cast<uint4*>(to + half * (kDim == 64 ? 8 * rows.dq.row : 32)) =
            make_uint4(words[half][0], words[half][1], words[half][2], words[half][3]);
      }
    }
  }
}

}  // namespace flashloom::sm90
