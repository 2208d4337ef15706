#pragma once

#include <cstdint>

#include "flashloom/ops/attention/patterns/sequence_geometry.h"
#include "flashloom/ops/attention/portable/rows.cuh"

// What all kernels of the portable backend are told.

namespace flashloom::portable {

/// scale -> softcap -> ALiBi or bias, and dropout; as plain data.
struct ScoreRule {
  float scale = 1;
  float softcap = 0;
  const float* slopes = nullptr;
  int64_t slope_batch = 0;
  int64_t slope_head = 0;
  const void* bias = nullptr;
  DType bias_dtype = DType::f32;
  int64_t bias_batch = 0, bias_head = 0, bias_row = 0;  // strides; 0 broadcasts
  const float* sinks = nullptr;
  int64_t sink_stride = 0;
  bool dropout = false;
  uint64_t drop_below = 0;  // random bits below it drop a pair
  float keep_factor = 1;
  const uint64_t* seed = nullptr;
  const uint64_t* seed_offset = nullptr;

  /// More than the scale happens to a score.
  __host__ __device__ bool general() const {
    return softcap != 0 || slopes != nullptr || bias != nullptr;
  }
};

struct Problem {
  GeometrySource source;
  ScoreRule score;
  TileShape tile = {64, 64};  // divides the blocks of a mask
  int32_t partial_count = 0;  // blocks of bits
  int32_t head_dim = 0;
  int32_t value_dim = 0;
  RowsView q, k, v;
  const int32_t* page_table = nullptr;
  int64_t page_table_stride = 0;
  int32_t page_size = 1;
  int32_t page_count = 0;
};

/// Rows of the keys or values of a sequence, through pages if there are any.
__device__ __forceinline__ HeadRows key_rows(const Problem& problem, const RowsView& view,
                                             const HeadGeometry& geometry,
                                             const SequenceRows& lengths, int32_t sequence,
                                             int32_t key_head) {
  HeadRows rows;
  if (problem.page_table == nullptr) {
    rows = head_rows(view, sequence, key_head, lengths.key_first);
  } else {
    rows = head_rows(view, 0, key_head, 0);
    rows.pages = problem.page_table + sequence * problem.page_table_stride;
    rows.page_size = problem.page_size;
    rows.page_count = problem.page_count;
    rows.page_bytes = view.batch * element_bytes(view.dtype);
  }
  rows.positions = geometry.inner.positions;
  return rows;
}

__device__ __forceinline__ HeadRows query_rows(const RowsView& view, const HeadGeometry& geometry,
                                               const SequenceRows& lengths, int32_t sequence,
                                               int32_t head) {
  HeadRows rows = head_rows(view, sequence, head, lengths.query_first);
  rows.positions = geometry.outer.positions;
  return rows;
}

/// The same of out, dout and their like, whose rows an index may name.
__device__ __forceinline__ HeadRows output_rows(const Problem& problem, const RowsView& view,
                                                const HeadGeometry& geometry,
                                                const SequenceRows& lengths, int32_t sequence,
                                                int32_t head) {
  HeadRows rows = query_rows(view, geometry, lengths, sequence, head);
  const int32_t* index = problem.source.output_index.at(sequence, head);
  if (index != nullptr) {
    rows.index = index + lengths.query_first;
    rows.index_limit = lengths.query_rows;
  }
  return rows;
}

}  // namespace flashloom::portable
