#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_aside.cuh"
#include "flashloom/ops/attention/sm90/backward_pieces.cuh"

// In which order tiles of keys of a block mask walk their lists where they add to dQ in turn.

namespace flashloom::sm90 {

/// Rows and columns of blocks of a mask that is ordered, and entries of a list; others are walked
/// as they are.
inline constexpr int32_t kMostOrdered = 512, kMostEntries = 12288;

/// Whether they are.
__host__ __device__ inline bool is_ordered(const BackwardBlocks& blocks, int32_t columns) {
  return blocks.row_count <= kMostOrdered && columns <= kMostOrdered &&
         blocks.entry_count <= kMostEntries;
}

struct ListOrder {
  int32_t free[kMostOrdered * kSumCopies];  // by row: when each copy is
  int32_t done[kMostOrdered];               // how many tiles of keys have added
  int32_t to_come[kMostOrdered];            // columns
  int32_t keys[kMostOrdered];               // of a column's entries, to sort them by
  uint16_t sorted[kMostOrdered];            // entries of a column
  uint16_t longest[kMostOrdered];           // columns
  uint16_t offsets[kMostOrdered + 1];
  uint16_t rows[kMostEntries];
};

/// The same without an order, for masks of any size: ranks alone.
__device__ __forceinline__ void rank_entries(const BackwardListParams& params, int32_t list,
                                             int32_t batch, int32_t head, int32_t columns,
                                             int32_t tiles) {
  const BackwardBlocks& blocks = params.blocks;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  int32_t* done = params.room + int64_t{list} * blocks.row_count;
  for (int32_t i = lane; i < blocks.row_count; i += 32) {
    done[i] = 0;
  }
  __syncwarp();
  const int32_t* rows = blocks.rows.at(batch, head);
  int4* turns = params.turns + int64_t{list} * blocks.entry_count;
  for (int32_t column = 0; column < columns; ++column) {
    const int2 entries = column_entries(blocks, batch, head, column);
    for (int32_t i = entries.x + lane; i < entries.y; i += 32) {
      const int32_t row = min(max(rows[i], 0), blocks.row_count - 1);
      turns[i] = make_int4(row, done[row], i, 0);
      done[row] += tiles;
    }
    __syncwarp();
  }
}

/// Of a list, by one warp: turns come in the order of columns, and which of its rows a column walks
/// first is what saves waiting. A model of the kernel, column after column: a tile of keys begins
/// some time after the one before it, and takes first what is free first, of that what most others
/// are still to come to. The order depends on the mask alone, so that dk and dv have the same bits
/// whatever the device. Of heads of the last section (behind params.sorted) long columns come
/// first, so that blocks end together: their tiles are written down here.
template <class Shape>
__device__ __forceinline__ void order_entries(const BackwardListParams& params, int32_t list) {
  constexpr int32_t kUnit = 64;     // of time: a block takes so many
  constexpr int32_t kBlocks = 132;  // tiles of keys at a time, on an H100
  extern __shared__ char memory[];
  ListOrder& own = *reinterpret_cast<ListOrder*>(memory);
  const BackwardBlocks& blocks = params.blocks;
  const int32_t batch = list / params.lists_a_batch;
  const int32_t head = list - batch * params.lists_a_batch;
  const int32_t rows = blocks.row_count;
  const int32_t tiles = blocks.keys / Shape::kKeys;
  const int32_t columns = (params.key_tiles + tiles - 1) / tiles;
  const int32_t first = column_entries(blocks, batch, head, 0).x;
  const int32_t count = max(0, column_entries(blocks, batch, head, columns - 1).y - first);
  if (!is_ordered(blocks, columns)) {
    rank_entries(params, list, batch, head, columns, tiles);
    return;
  }
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int32_t i = lane; i < rows; i += 32) {
#pragma unroll
    for (int32_t copy = 0; copy < kSumCopies; ++copy) {
      own.free[i * kSumCopies + copy] = 0;
    }
    own.done[i] = own.to_come[i] = 0;
  }
  for (int32_t i = lane; i <= columns; i += 32) {
    const int2 entries = column_entries(blocks, batch, head, min(i, columns - 1));
    const int32_t at = (i < columns ? entries.x : entries.y) - first;
    own.offsets[i] = static_cast<uint16_t>(min(max(at, 0), count));
  }
  __syncwarp();
  const int32_t* found = blocks.rows.at(batch, head) + first;
#pragma unroll 4
  for (int32_t i = lane; i < count; i += 32) {
    const int32_t row = min(max(found[i], 0), rows - 1);
    atomicAdd(&own.to_come[row], 1);
    own.rows[i] = static_cast<uint16_t>(row);
  }
  __syncwarp();
  // What a tile takes, ends and starts being 1.5 blocks, over the tiles that begin meanwhile.
  const BackwardOrder& order = params.order;
  const int32_t walk = count * params.problem.heads_per_key * kUnit / columns;
  const int32_t pace = (walk + kUnit * 3 / 2) * order.section * tiles / kBlocks;
  int4* turns = params.turns + int64_t{list} * blocks.entry_count + first;
  const int32_t place = list - (order.sections - 1) * order.section;  // in the last section
  const bool by_length = params.sorted < params.work_count && place >= 0;
  if (by_length) {
    auto length = [&](int32_t column) { return own.offsets[column + 1] - own.offsets[column]; };
    for (int32_t i = lane; i < columns; i += 32) {
      int32_t to = 0;
      for (int32_t j = 0; j < columns; ++j) {
        to += length(j) > length(i) || (length(j) == length(i) && j < i) ? 1 : 0;
      }
      own.longest[to] = static_cast<uint16_t>(i);
      const auto width = static_cast<int32_t>(order.last.divisor);
      params.works[params.sorted + to * width + place] =
          work_of_lists<Shape>(params, params.sorted + i * width + place);
    }
    __syncwarp();
  }
  for (int32_t n = 0; n < columns; ++n) {
    const int32_t column = by_length ? own.longest[n] : n;
    const int32_t begin = own.offsets[column];
    const int32_t length = min(own.offsets[column + 1] - begin, kMostOrdered);
    const int32_t start = n * pace;
    auto free_at = [&](int32_t row) -> int32_t& {
      return own.free[row * kSumCopies + own.done[row] % kSumCopies];
    };
    // Where nearly all is visible, columns follow each other as they are.
    const bool sorts = 8 * length <= 7 * rows;
    if (sorts) {
      for (int32_t i = lane; i < length; i += 32) {
        const int32_t row = own.rows[begin + i];
        own.keys[i] = max(free_at(row), start) - min(--own.to_come[row], kUnit);
      }
      __syncwarp();
      for (int32_t i = lane; i < length; i += 32) {
        const int32_t key = own.keys[i];
        int32_t to = 0;
#pragma unroll 8
        for (int32_t j = 0; j < length; ++j) {
          const int32_t other = own.keys[j];
          to += other < key || (other == key && j < i) ? 1 : 0;
        }
        own.sorted[to] = static_cast<uint16_t>(i);
      }
      __syncwarp();
    }
    // A row is left when it is free and the rows before are left, and a block's time later.
    int32_t least = start;  // of rows before, without the time that blocks take
    for (int32_t base = 0; base < length; base += 32) {
      const int32_t i = base + lane;
      const bool exists = i < length;
      const int32_t entry = begin + (exists && sorts ? own.sorted[i] : i);
      const int32_t row = exists ? own.rows[entry] : 0;
      int32_t time = exists ? max(free_at(row) - i * kUnit, least) : least;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int32_t before = __shfl_up_sync(0xffffffffu, time, step);
        time = lane >= step ? max(time, before) : time;
      }
      least = __shfl_sync(0xffffffffu, time, 31);
      if (exists) {
        turns[begin + i] = make_int4(row, own.done[row], first + entry, 0);
        for (int32_t tile = 0; tile < tiles; ++tile) {
          free_at(row) = time + (i + 1) * kUnit;
          ++own.done[row];
        }
      }
      __syncwarp();
    }
  }
}

}  // namespace flashloom::sm90
