#pragma once

#include "flashloom/ops/attention/sm90/backward_schedule.cuh"

// Kernels in which a block owns queries and computes their dQ by itself: what they take, and which
// keys a block walks.

namespace flashloom::sm90 {

inline constexpr int32_t kQueryPlace = 64;  // queries of a place of lse and delta

struct QueriesParams {
  Problem problem;
  int32_t columns;  // of dq
  RowTensor dq;
  const float* lse;  // by place
  const float* delta;
  float scale;
  bool accumulate;
  bool descending;      // late queries first: they see most keys
  int32_t query_tiles;  // places a head
  int32_t blocks;       // a head
  int32_t section;      // heads worked on together
  BackwardScore score;
};

struct QueriesWork {
  int32_t batch, head, query;  // first query
  int32_t begin, end;          // tiles of keys
  Sequence sequence;

  /// Where this sequence's lse and delta start.
  __device__ __forceinline__ int64_t first_row(const QueriesParams& params) const {
    return first_place(params.problem, sequence, batch, head, params.query_tiles, kQueryPlace) *
           kQueryPlace;
  }
};

/// Tile `tile` of the queries of a head, or of a packed head.
template <class Shape>
__device__ __forceinline__ QueriesWork queries_work_at(const QueriesParams& params, int32_t head,
                                                       int32_t tile) {
  const Problem& problem = params.problem;
  const bool packed = problem.cu_query != nullptr;
  QueriesWork work;
  work.batch = packed ? sequence_at(problem.cu_query, problem.batch, problem.total_query,
                                    Shape::kQueries, tile)
                      : head / problem.heads;
  work.head = packed ? head : head % problem.heads;
  work.sequence = sequence_of(problem, work.batch);
  int32_t tiles = params.blocks;
  if (packed) {
    tile -= work.sequence.query_first / Shape::kQueries + work.batch;
    tiles = (work.sequence.query_rows + Shape::kQueries - 1) / Shape::kQueries;
  }
  if (params.descending && tile < tiles) {
    tile = tiles - 1 - tile;
  }
  work.query = tile * Shape::kQueries;
  const int32_t last = min(work.query + Shape::kQueries, work.sequence.query_length) - 1;
  work.begin = work.sequence.key_begin(work.query) / Shape::kKeys;
  work.end =
      last < work.query ? 0 : (work.sequence.key_end(last) + Shape::kKeys - 1) / Shape::kKeys;
  return work;
}

/// Block `index`: sections of heads side by side.
template <class Shape>
__device__ __forceinline__ QueriesWork queries_work(const QueriesParams& params, int32_t index) {
  const Problem& problem = params.problem;
  const int32_t heads = problem.cu_query != nullptr ? problem.heads : problem.heads * problem.batch;
  const int32_t section = index / (params.section * params.blocks);
  const int32_t width = min(params.section, heads - section * params.section);
  const int32_t rest = index - section * params.section * params.blocks;
  return queries_work_at<Shape>(params, section * params.section + rest % width, rest / width);
}

/// What a block that owns queries knows about its mask, for 64 queries from `first` on.
template <int kKeys>
struct QueriesBorders {
  int32_t open, closed;     // tiles in [open, closed) hide nothing
  int32_t tail, tail_rows;  // the tile whose last rows are not this sequence's, or -1

  __device__ __forceinline__ QueriesBorders(const Problem& problem, const Sequence& sequence,
                                            int32_t first) {
    open = (sequence.key_begin(first + 63) + kKeys - 1) / kKeys;
    closed = sequence.key_end(first) / kKeys;
    const bool others = problem.cu_key != nullptr || problem.used_key != nullptr;
    tail_rows = sequence.key_length % kKeys;
    tail = others && tail_rows != 0 ? sequence.key_length / kKeys : -1;
  }
};

/// The same for a block that owns 64 keys from `first` on.
template <int kQueries>
struct KeysBorders {
  int32_t open, closed;
  int32_t tail, tail_rows;

  __device__ __forceinline__ KeysBorders(const Problem& problem, const Sequence& sequence,
                                         int32_t first) {
    open = first + 64 <= sequence.key_length
               ? (sequence.query_begin(first + 63) + kQueries - 1) / kQueries
               : INT32_MAX;
    const int32_t end = sequence.query_end(first);
    closed = end >= sequence.query_length ? INT32_MAX : end / kQueries;
    const bool others = problem.cu_query != nullptr || problem.used_query != nullptr;
    tail_rows = sequence.query_length % kQueries;
    tail = others && tail_rows != 0 ? sequence.query_length / kQueries : -1;
  }
};

}  // namespace flashloom::sm90
