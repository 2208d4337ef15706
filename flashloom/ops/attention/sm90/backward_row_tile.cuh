#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"

// Which queries lie at a place of the backward kernels' rows and sums.

namespace flashloom::sm90 {

/// A tile of queries of a query head.
struct RowTile {
  int32_t batch, head, first;  // first query
  int64_t place;
  Sequence sequence;
};

/// The tile of block `index`: places of a head are neighbours.
__device__ __forceinline__ RowTile row_tile(const BackwardRowParams& params, int32_t index,
                                            int32_t queries) {
  const Problem& problem = params.problem;
  const bool packed = problem.cu_query != nullptr;
  const int32_t head = params.tiles.quotient(index);
  int32_t tile = index - head * params.query_tiles;
  RowTile result;
  result.batch =
      packed ? sequence_at(problem.cu_query, problem.batch, problem.total_query, queries, tile)
             : params.heads.quotient(head);
  result.head = packed ? head : head - result.batch * problem.heads;
  result.sequence = sequence_of(problem, result.batch);
  result.place = index;
  if (packed) {
    tile -= result.sequence.query_first / queries + result.batch;
  }
  result.first = tile * queries;
  return result;
}

}  // namespace flashloom::sm90
