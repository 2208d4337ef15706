#pragma once

#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

// Copying tiles of K and V to shared memory. A row lies there as one (mma.sync) or as panels of 128
// bytes that are a tile apart (wgmma); either way its 16-byte chunks change places.

/// Bits that a row of a tile of keys adds (exclusive or) to the address of its 16-byte chunks, so
/// that the eight rows of a matrix lie in different banks. Rows of 192 bytes start at every other
/// bank already.
template <int kDim>
__device__ __forceinline__ uint32_t swizzle(uint32_t row) {
  return (kDim % 64 == 0 ? row & 7 : (row >> 1) & 3) * 16;
}

/// A thread's view of the keys of one (sequence, key-value head): the row of a tile and the chunk
/// of it that it copies first.
struct KeyCopies {
  const char* k;
  const char* v;
  const int32_t* pages;  // of the sequence; null without a page table
  int32_t first, last;   // keys outside are not read; they become zeros
  int32_t row;
  uint32_t target;  // in a stage, before the swizzle's part of it
  uint32_t swizzled;
  bool regular;  // a tile's keys lie one behind the other: no pages, or pages of whole tiles
};

template <class Shape>
__device__ __forceinline__ KeyCopies key_copies(const Params& params, const Unit& unit,
                                                const Work& work) {
  const uint32_t thread = threadIdx.x % Shape::kTeamThreads;
  const uint32_t row = thread / Shape::kWidth;
  const uint32_t chunk = thread % Shape::kWidth;
  const bool paged = params.pages != nullptr;
  const int64_t sequence = paged ? 0 : unit.sequence;
  KeyCopies copies;
  copies.k = params.k.data + sequence * params.k.sequence + unit.key_head * params.k.head +
             work.rows.key_first * params.k.row + chunk * 16;
  copies.v = params.v.data + sequence * params.v.sequence + unit.key_head * params.v.head +
             work.rows.key_first * params.v.row + chunk * 16;
  copies.pages = paged ? params.pages + unit.sequence * params.pages_sequence : nullptr;
  copies.first = work.first;
  copies.last = work.last;
  copies.row = static_cast<int32_t>(row);
  copies.target = row * Shape::kRowBytes;
  copies.swizzled = (chunk * 16) ^ swizzle<Shape::kDim>(row);
  if constexpr (Shape::kWarpgroups) {
    copies.target += chunk / 8 * Shape::kPanelBytes;
    copies.swizzled &= 127;
  }
  copies.regular = !paged || params.page_size.divisor % Shape::kTileKeys == 0;
  return copies;
}

/// A page as the table names it; one out of range is clamped and reported.
__device__ __forceinline__ int32_t checked_page(const Params& params, int32_t page) {
  if (page >= 0 && page < params.page_count) {
    return page;
  }
  if (params.status != nullptr) {
    *params.status = 1;
  }
  return 0;
}

__device__ __forceinline__ int32_t row_in_page(const Params& params, int32_t key) {
  return key - params.page_size.quotient(key) * static_cast<int32_t>(params.page_size.divisor);
}

/// Entries of the page table: of each row that the thread copies of a tile, or one for all of a
/// tile of regular copies. Fetched a tile ahead of their use, all at once: each is a round trip.
template <class Shape>
struct TilePages {
  int32_t entry[Shape::kRowSteps];

  __device__ __forceinline__ void fetch(const Params& params, const KeyCopies& copies,
                                        int32_t tile_key) {
    if (copies.pages == nullptr) {
      return;
    }
    if (copies.regular) {
      // The first key of a tile may be one that is not read, the last never is.
      entry[0] = copies.pages[params.page_size.quotient(max(tile_key, copies.first))];
      return;
    }
#pragma unroll
    for (int step = 0; step < Shape::kRowSteps; ++step) {
      const int32_t key = copied_key(copies, tile_key, step);
      entry[step] = copies.pages[params.page_size.quotient(key)];
    }
  }

  /// The key whose row is copied in a step, or the nearest one that may be read.
  static __device__ __forceinline__ int32_t copied_key(const KeyCopies& copies, int32_t tile_key,
                                                       int step) {
    return min(max(tile_key + copies.row + step * Shape::kRowsOnce, copies.first), copies.last - 1);
  }
};

/// Starts the copies of a tile of K and V into a stage.
template <class Shape>
__device__ __forceinline__ void load_tile(const Params& params, const KeyCopies& copies,
                                          int32_t tile_key, const TilePages<Shape>& pages,
                                          uint32_t stage) {
  constexpr int kColumnSteps = Shape::kChunks / Shape::kWidth;
  const uint32_t thread = threadIdx.x % Shape::kTeamThreads;
  const int32_t key = tile_key + copies.row;
  const auto chunk = static_cast<int32_t>(thread % Shape::kWidth);
  const auto visible = static_cast<uint32_t>(copies.last - copies.first);
  const auto copy_row = [&](int step, const char* k, const char* v) {
    const bool exists =
        static_cast<uint32_t>(key + step * Shape::kRowsOnce - copies.first) < visible;
    const uint32_t target = stage + copies.target +
                            (copies.swizzled ^ swizzle<Shape::kDim>(step * Shape::kRowsOnce)) +
                            step * Shape::kRowsOnce * Shape::kRowBytes;
#pragma unroll
    for (int c = 0; c < kColumnSteps; ++c) {
      const int offset = c * Shape::kWidth;
      const uint32_t column = target + c * Shape::kColumnBytes;
      cuda::cp_async_16(column, k + offset * 16, exists && chunk + offset < params.k.chunks);
      cuda::cp_async_16(column + Shape::kTileBytes, v + offset * 16,
                        exists && chunk + offset < params.v.chunks);
    }
  };
  if (copies.regular) {
    int32_t row = key;
    int32_t page = 0;
    if (copies.pages != nullptr) {
      row = row_in_page(params, tile_key) + copies.row;
      page = checked_page(params, pages.entry[0]);
    }
    const char* k = copies.k + page * params.k.sequence + row * params.k.row;
    const char* v = copies.v + page * params.v.sequence + row * params.v.row;
    const int64_t k_step = Shape::kRowsOnce * params.k.row;
    const int64_t v_step = Shape::kRowsOnce * params.v.row;
#pragma unroll
    for (int step = 0; step < Shape::kRowSteps; ++step) {
      copy_row(step, k, v);
      k += k_step;
      v += v_step;
    }
  } else {
#pragma unroll
    for (int step = 0; step < Shape::kRowSteps; ++step) {
      const int32_t page = checked_page(params, pages.entry[step]);
      const int32_t row = row_in_page(params, TilePages<Shape>::copied_key(copies, tile_key, step));
      copy_row(step, copies.k + page * params.k.sequence + row * params.k.row,
               copies.v + page * params.v.sequence + row * params.v.row);
    }
  }
}

}  // namespace flashloom::decode
