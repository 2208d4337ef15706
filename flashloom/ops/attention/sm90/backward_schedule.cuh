#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/ops/attention/sm90/backward_counts.cuh"
#include "flashloom/ops/attention/sm90/backward_shape.cuh"

// Which keys a block of the backward kernel owns, which tiles of queries it walks in which order,
// and when it may add to their dQ.

namespace flashloom::sm90 {

/// The sequence that owns tile `index` of a packed head. A sequence's tiles start at its first row
/// / rows + its number: no two share one, and rows / T + sequences are enough for all. All lanes of
/// a warp call it together.
__device__ __forceinline__ int32_t sequence_at(const int32_t* cu, int32_t batch, int32_t total,
                                               int32_t rows, int32_t index) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  int32_t found = 0;
  for (int32_t first = 0; first < batch; first += 32) {
    const int32_t b = first + lane;
    const bool before = b < batch && min(max(cu[b], 0), total) / rows + b <= index;
    const uint32_t votes = __ballot_sync(0xffffffffu, before);
    if (votes != 0) {
      found = first + 31 - __clz(static_cast<int>(votes));
    }
    if (votes != 0xffffffffu) {
      break;
    }
  }
  return found;
}

/// The first place (tile of rows, of sums) of a head of a sequence.
__device__ __forceinline__ int64_t first_place(const Problem& problem, const Sequence& sequence,
                                               int32_t batch, int32_t head, int32_t query_tiles,
                                               int32_t queries) {
  return problem.cu_query != nullptr
             ? int64_t{head} * query_tiles + sequence.query_first / queries + batch
             : (int64_t{batch} * problem.heads + head) * query_tiles;
}

/// Where key tile `own` of `count` starts among `queries` tiles of queries, if up to `limit` key
/// tiles that run side by side start around a circle, so that no two add to the same dQ at a time.
__device__ __forceinline__ int32_t place_in_circle(int32_t own, int32_t count, int32_t limit,
                                                   int32_t queries) {
  int32_t width = count;
  int32_t base = 0;
  if (count > limit) {
    const int32_t circles = (count + limit - 1) / limit;
    width = (count + circles - 1) / circles;
    base = own / width * width;
    width = min(width, count - base);
  }
  // The place next to it would do as well.
  const float place =
      __fdividef(static_cast<float>(own - base) * static_cast<float>(queries), width);
  return min(static_cast<int32_t>(place), queries - 1);
}

/// Whether sums take turns.
template <class Shape>
__device__ __forceinline__ bool takes_turns(const BackwardParams& params) {
  return Shape::kTurns == BackwardTurns::always ||
         (Shape::kTurns == BackwardTurns::maybe && params.in_turn);
}

/// Whether a key-value head is one of those whose late keys come first.
template <class Shape>
__device__ __forceinline__ bool starts_with_late_keys(const BackwardParams& params, int32_t head) {
  return takes_turns<Shape>(params) && head < params.order.alone;
}

/// The work of a block: tile `tile` of the keys of a key-value head, or of a packed head.
template <class Shape>
__device__ __forceinline__ BackwardWork backward_work_at(const BackwardParams& params, int32_t head,
                                                         int32_t tile) {
  const Problem& problem = params.problem;
  const bool packed = problem.cu_key != nullptr;
  const auto heads_k = static_cast<int32_t>(params.order.heads.divisor);
  BackwardWork work;
  if (packed) {
    work.batch = sequence_at(problem.cu_key, problem.batch, problem.total_key, Shape::kKeys, tile);
  } else {
    work.batch = params.order.heads.quotient(head);
  }
  work.head = packed ? head : head - work.batch * heads_k;
  work.sequence = sequence_of(problem, work.batch);
  int32_t tiles = params.key_tiles;
  if (packed) {
    tile -= work.sequence.key_first / Shape::kKeys + work.batch;
    tiles = (work.sequence.key_rows + Shape::kKeys - 1) / Shape::kKeys;
  }
  const bool late_first = starts_with_late_keys<Shape>(params, head);
  if (late_first && tile < tiles) {
    tile = tiles - 1 - tile;
  }
  work.key = tile * Shape::kKeys;
  const int32_t last = min(work.key + Shape::kKeys, work.sequence.key_length) - 1;
  work.begin = work.sequence.query_begin(work.key) / Shape::kQueries;
  work.end = last < work.key
                 ? work.begin
                 : (work.sequence.query_end(last) + Shape::kQueries - 1) / Shape::kQueries;
  work.end = max(work.begin, work.end);
  if (Shape::kLists && params.blocks.offsets.data != nullptr) {
    work.begin = 0;  // the lists decide
    work.end = last < work.key ? 0 : 1;
  }
  work.first = takes_turns<Shape>(params) && !late_first ? work.end - 1 : work.begin;
  if (params.cyclic && work.begin < work.end) {
    const int32_t count = (work.sequence.key_length + Shape::kKeys - 1) / Shape::kKeys;
    work.first = place_in_circle(tile, count, params.circle, work.end);
  }
  return work;
}

/// The key-value head of a block among those of all sequences.
__device__ __forceinline__ int32_t head_of_work(const BackwardParams& params,
                                                const BackwardWork& work) {
  return params.problem.cu_key != nullptr
             ? work.head
             : work.batch * static_cast<int32_t>(params.order.heads.divisor) + work.head;
}

/// Whether any head does. Below 128 columns producers have no register left to ask.
template <class Shape>
__device__ __forceinline__ bool may_start_with_late_keys(const BackwardParams& params) {
  return Shape::kDim < 128 || params.order.alone != 0;
}

/// Waits until the rows of a work's heads are prepared and nothing has been added to their dQ.
__device__ __forceinline__ void wait_for_rows(const BackwardParams& params,
                                              const BackwardWork& work) {
  if (params.ready == nullptr) {
    cuda::wait_for_earlier_kernel();
    return;
  }
  wait_for_count(params.ready + head_of_work(params, work), params.ready_count,
                 params.problem.status);
  cuda::fence_async_global();  // before the copy engine reads them
}

/// Whether a block waits for the whole kernel before: where rows are waited for head by head, one
/// does, so that whoever waits for this kernel has waited for that one.
__device__ __forceinline__ bool waits_for_all(const BackwardParams& params) {
  return params.ready == nullptr || blockIdx.x == gridDim.x - 1;
}

/// The work of block `index`.
template <class Shape>
__device__ __forceinline__ BackwardWork backward_work(const BackwardParams& params, int32_t index) {
  const BackwardOrder& order = params.order;
  int32_t first_head = 0;
  if (order.section == 0 || Shape::kTurns != BackwardTurns::never) {
    const int32_t head = order.tiles.quotient(index);
    if (order.section == 0 || starts_with_late_keys<Shape>(params, head)) {
      return backward_work_at<Shape>(params, head, index - head * params.key_tiles);
    }
    first_head = order.alone;
    index -= first_head * params.key_tiles;
  }
  // Early keys, which most queries see under a causal mask, come first, where turns allow it.
  const int32_t section = min(order.blocks.quotient(index), order.sections - 1);
  const Divisor& width = section == order.sections - 1 ? order.last : order.width;
  const int32_t rest = index - section * static_cast<int32_t>(order.blocks.divisor);
  const int32_t tile = width.quotient(rest);
  return backward_work_at<Shape>(
      params,
      first_head + section * order.section + rest - tile * static_cast<int32_t>(width.divisor),
      tile);
}

/// The steps of a block: tiles of queries of each query head that reads its keys.
template <class Shape>
struct BackwardWalk : BackwardStep {
  int32_t last_head;
  int32_t entry, entry_first, step;  // of the block mask's list

  __device__ __forceinline__ bool start(const BackwardParams& params, const BackwardWork& work) {
    head = work.head * params.problem.heads_per_key;
    last_head = head + params.problem.heads_per_key - 1;
    partial = -1;
    if constexpr (Shape::kLists) {
      if (params.blocks.offsets.data != nullptr) {
        --head;
        entry = entry_first = 0;
        step = params.blocks.query_tiles;
        return advance(params, work);
      }
    }
    t = work.first;
    return work.begin < work.end;
  }

  __device__ __forceinline__ bool advance(const BackwardParams& params, const BackwardWork& work) {
    if constexpr (Shape::kLists) {
      if (params.blocks.offsets.data != nullptr) {
        return advance_list(params, work);
      }
    }
    if (takes_turns<Shape>(params)) {
      // All heads at a tile of queries before the next: blocks with few tiles a head would else
      // wait for those with many before every head.
      if (head < last_head) {
        ++head;
        return true;
      }
      head = last_head - params.problem.heads_per_key + 1;
      // Of one tile there is no next.
      const bool up = may_start_with_late_keys<Shape>(params) && work.first == work.begin;
      t += up ? 1 : -1;
      return t >= work.begin && t < work.end;
    }
    ++t;
    t = t == work.end ? work.begin : t;
    head += t == work.first ? 1 : 0;
    return head <= last_head;
  }

 private:
  /// Lists are walked from the last entry to the first.
  __device__ __forceinline__ bool advance_list(const BackwardParams& params,
                                               const BackwardWork& work) {
    const BackwardBlocks& blocks = params.blocks;
    const int32_t queries = (work.sequence.query_length + Shape::kQueries - 1) / Shape::kQueries;
    while (true) {
      while (step == blocks.query_tiles) {
        if (entry == entry_first) {
          if (++head > last_head || work.key >= work.sequence.key_length) {
            return false;
          }
          const int32_t* offsets = blocks.offsets.at(work.batch, head);
          const int32_t column = work.key / blocks.keys;
          entry_first = min(max(offsets[column], 0), blocks.entry_count);
          entry = max(entry_first, min(offsets[column + 1], blocks.entry_count));
          continue;
        }
        --entry;
        step = 0;
        partial = blocks.partial.data != nullptr
                      ? min(blocks.partial.at(work.batch, head)[entry], blocks.partial_count - 1)
                      : -1;
      }
      const int32_t row = max(blocks.rows.at(work.batch, head)[entry], 0);
      t = min(row, blocks.row_count - 1) * blocks.query_tiles + blocks.query_tiles - 1 - step;
      ++step;
      if (t < queries) {
        return true;
      }
    }
  }
};

/// The same for the consumers of blocks that stay, which need the tiles of queries only, in few
/// registers.
template <class Shape>
struct BackwardCount : BackwardStep {
  int32_t left;   // steps
  int32_t heads;  // in turn: that are left at this tile

  __device__ __forceinline__ bool start(const BackwardParams& params, const BackwardWork& work) {
    t = work.first;
    heads = params.problem.heads_per_key;
    left = (work.end - work.begin) * heads;
    return left > 0;
  }

  __device__ __forceinline__ bool advance(const BackwardParams& params, const BackwardWork& work) {
    if (takes_turns<Shape>(params)) {
      if (--heads == 0) {
        heads = params.problem.heads_per_key;
        t += work.first == work.begin ? 1 : -1;
      }
    } else if (++t == work.end) {
      t = work.begin;
    }
    return --left > 0;
  }
};

/// How many other tiles of keys add to the dQ of the walk's tile before this one does. Those have
/// lower indices. Early keys come first and all walk from the last queries to the first, so that
/// each meets a tile a little later than the block before it; or late keys come first and all walk
/// from the first queries that see them on.
///
/// No delay can make turns wait for each other in a circle: tiles of keys are begun in the order of
/// their index (blocks start so; those that stay draw the next index), a block ends one before it
/// begins the next, and waits for lower ones alone. So the lowest that is not done is being worked
/// on, waits for none, and ends.
template <class Shape>
__device__ __forceinline__ int32_t backward_rank(const BackwardParams& params,
                                                 const BackwardWork& work,
                                                 const BackwardWalk<Shape>& walk) {
  const int32_t own = work.key / Shape::kKeys;
  if constexpr (Shape::kLists) {
    if (params.blocks.ranks != nullptr) {
      const BackwardBlocks& blocks = params.blocks;
      const int64_t list = work.batch * blocks.rank_batch + walk.head * blocks.rank_head;
      const int32_t tiles = blocks.keys / Shape::kKeys;
      return blocks.ranks[list * blocks.entry_count + walk.entry] * tiles + own % tiles;
    }
  }
  const Sequence& sequence = work.sequence;
  if (may_start_with_late_keys<Shape>(params) && head_of_work(params, work) < params.order.alone) {
    const int32_t keys = (sequence.key_length + Shape::kKeys - 1) / Shape::kKeys;
    const int32_t last = (walk.t + 1) * Shape::kQueries - 1 + sequence.offset + sequence.right;
    return min(keys - 1, last / Shape::kKeys) - own;
  }
  return own - sequence.key_begin(walk.t * Shape::kQueries) / Shape::kKeys;
}

}  // namespace flashloom::sm90
