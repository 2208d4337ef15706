#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "flashloom/ops/attention/divisor.h"
#include "flashloom/ops/attention/sm90/backward_shape.cuh"

// What surrounds the backward kernels: numbers of rows before them, dq from its sums and the
// gradients of sinks behind them. All of it runs at the memory's rate, so one kernel does for both
// storage types and for all shapes whose rows and sums lie alike.

namespace flashloom::sm90 {

struct BackwardRowParams {
  Problem problem;
  int32_t columns, value_columns;  // of dq, of out and dout
  RowTensor out, dout, dq;
  RowTensor lse;
  RowTensor dlse, entropy, dentropy;  // data may be null
  float *padded_lse, *delta;
  float* padded_dentropy;  // or null
  float* dq_sum;           // or null: no kernel adds up dQ in memory
  int32_t sum_floats;      // of a place of dq_sum
  int32_t* added;          // two a place, or null
  int32_t* ended;          // a key-value head of a sequence, or null
  int32_t ends;            // what `ended` comes to
  BackwardSplit split;     // of the last tiles of keys, of `key_tiles` a head
  int32_t key_tiles;
  int32_t* part_counts;  // two a tile that is split
  int32_t* drawn;        // where blocks stay, zero: places that are being converted
  int32_t* ready;        // a key-value head: places whose rows are prepared; or null
  const float* sinks;
  float* dsinks;
  int64_t sinks_stride, dsinks_stride;
  float scale;
  bool accumulate;
  bool half;             // f16 storage, else bf16
  int32_t query_tiles;   // places a head
  Divisor tiles, heads;  // of a head; of a sequence
};

/// Lanes that read a row of up to `columns` columns, 8 each.
constexpr int row_lanes(int columns) {
  return columns > 128 ? 32 : columns > 64 ? 16 : 8;
}

/// lse, delta and dentropy of every query; clears the sums of dQ or the marks of who added to them.
template <int kLanes, int kQueries>
void launch_backward_prepare(const BackwardRowParams& rows, int64_t places, cudaStream_t stream);

/// The same before a kernel whose blocks stay: and the works of its tiles of keys, of which none
/// are taken.
template <int kLanes, int kQueries>
void launch_backward_prepare_staying(const BackwardRowParams& rows, const BackwardParams& next,
                                     int64_t places, cudaStream_t stream);

/// Rows that a warp prepares at a time where that is done beside the main kernel.
constexpr int row_chunk(int lanes) {
  return 8 * 32 / lanes;
}

/// What out and dout are fetched by where rows are prepared beside the main kernel, a chunk a box.
struct BackwardRowMaps {
  CUtensorMap out, dout;
};

/// Prepares places [first, places) by `blocks` blocks that take a multiprocessor each and let the
/// next kernel start at once: rows.ready says how far they are. Those before have been prepared by
/// the kernel before.
template <int kLanes, int kQueries>
void launch_backward_prepare_rest(const BackwardRowParams& rows, const BackwardRowMaps& maps,
                                  int64_t first, int64_t places, int32_t blocks,
                                  cudaStream_t stream);

/// A warpgroup's columns of the sums of a place (rows, if swapped are queries): BackwardShape's.
constexpr int sum_columns(int columns, int queries, bool swapped) {
  return !swapped ? 64 : columns > 64 ? queries : queries / 2;
}

/// dq from its sums, as a BackwardShape of these numbers leaves them.
template <int kColumns, int kQueries, bool kSwapped>
void launch_backward_finish(const BackwardRowParams& rows, int64_t places, cudaStream_t stream);

/// The same of 16-bit dq as heads are complete (rows.ended), by `blocks` blocks.
template <int kColumns, int kQueries, bool kSwapped>
void launch_backward_convert(const BackwardRowParams& rows, int64_t places, int32_t blocks,
                             cudaStream_t stream);

/// Gradients of sinks, if they are asked for. `queries`: of a place.
void launch_backward_sinks(const BackwardRowParams& rows, int32_t queries, cudaStream_t stream);

/// Ranks of the entries of `lists` lists, `heads` a sequence, for sums in a fixed order; `counts`
/// takes one number a row and list.
void launch_backward_ranks(const BackwardBlocks& blocks, int32_t columns, int32_t lists,
                           int32_t heads, int32_t* counts, cudaStream_t stream);

}  // namespace flashloom::sm90
