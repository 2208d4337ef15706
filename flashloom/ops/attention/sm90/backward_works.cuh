#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_schedule.cuh"

// The order in which blocks that stay take tiles of keys. Of packed sequences only the device knows
// the lengths: there the longest sequence of a section of heads comes first, so that the last tiles
// to be taken are short, and tiles that do not exist are left out.

namespace flashloom::sm90 {

/// Tiles of keys of a head, of all packed sequences and of those that come before one of them.
struct PackedTiles {
  int32_t all, before;
  bool ordered;  // if not, they may overlap, and nobody knows which tiles there are
};

/// Those of sequence `batch`, with `query_rows` queries. All lanes of a warp call it together.
template <class Shape>
__device__ __forceinline__ PackedTiles packed_tiles(const Problem& problem, int32_t batch,
                                                    int32_t query_rows) {
  PackedTiles tiles = {.all = 0, .before = 0, .ordered = true};
  for (auto b = static_cast<int32_t>(threadIdx.x % 32); b < problem.batch; b += 32) {
    const Sequence sequence = sequence_of(problem, b);
    const int32_t begin = problem.cu_key[b], end = problem.cu_key[b + 1];
    tiles.ordered = tiles.ordered && 0 <= begin && begin <= end && end <= problem.total_key;
    const int32_t own = (sequence.key_rows + Shape::kKeys - 1) / Shape::kKeys;
    tiles.all += own;
    const bool first =
        sequence.query_rows > query_rows || (sequence.query_rows == query_rows && b < batch);
    tiles.before += first ? own : 0;
  }
  return {__reduce_add_sync(0xffffffffu, tiles.all), __reduce_add_sync(0xffffffffu, tiles.before),
          __all_sync(0xffffffffu, static_cast<int>(tiles.ordered)) != 0};
}

/// Writes work `index`, of packed sequences to its place in the list. All lanes of a warp call it
/// together.
template <class Shape>
__device__ __forceinline__ void write_work(const BackwardParams& params, int32_t index) {
  const Problem& problem = params.problem;
  const BackwardOrder& order = params.order;
  const bool packed = problem.cu_key != nullptr;
  const int32_t head = order.tiles.quotient(index);
  const int32_t of_head = index - head * params.key_tiles;
  const BackwardWork work =
      packed ? backward_work_at<Shape>(params, head, of_head) : backward_work<Shape>(params, index);
  const Sequence& sequence = work.sequence;
  PackedTiles tiles = {};
  if (packed) {
    tiles = packed_tiles<Shape>(problem, work.batch, sequence.query_rows);
  }
  if (threadIdx.x % 32 != 0) {
    return;
  }
  if (!tiles.ordered) {
    params.works[index] = work;
    if (work.key < 0) {  // no tile, but it must not end the list
      params.works[index].key = 0;
      params.works[index].end = work.begin;
    }
    return;
  }
  const int32_t own = (sequence.key_rows + Shape::kKeys - 1) / Shape::kKeys;
  const int32_t tile = of_head - sequence.key_first / Shape::kKeys - work.batch;
  const auto heads = static_cast<int32_t>(order.heads.divisor);
  if (index >= tiles.all * heads) {
    params.works[index].key = -1;  // no more
  }
  if (0 <= tile && tile < own) {  // rows before the first sequence have tiles below 0
    const int32_t section = order.width.quotient(head);
    const int32_t first = section * order.section;
    const int32_t width = min(order.section, heads - first);
    // Late keys first: one head after the other.
    const int32_t within = starts_with_late_keys<Shape>(params, head) ? (head - first) * own + tile
                                                                      : tile * width + head - first;
    params.works[first * tiles.all + width * tiles.before + within] = work;
  }
}

/// Tiles of keys of a head that are counted in params.key_tiles and have no work. All lanes of a
/// warp call it together.
template <class Shape>
__device__ __forceinline__ int32_t missing_tiles(const BackwardParams& params) {
  if (params.problem.cu_key == nullptr) {
    return 0;
  }
  const PackedTiles tiles = packed_tiles<Shape>(params.problem, 0, 0);
  return tiles.ordered ? params.key_tiles - tiles.all : 0;
}

}  // namespace flashloom::sm90
