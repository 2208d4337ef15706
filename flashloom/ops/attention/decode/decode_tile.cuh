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

/// A chunk of a tile that a thread copies, and where it lies in a stage.
template <class Shape>
struct TileChunk {
  int32_t row, chunk;
  uint32_t target;

  /// The thread's chunk in its turn `turn` of those that together are whole rows.
  __device__ __forceinline__ explicit TileChunk(int turn) {
    const uint32_t place = threadIdx.x % Shape::kTeamThreads + turn * Shape::kTeamThreads;
    const uint32_t own_row = place / Shape::kChunks;
    const uint32_t own_chunk = place % Shape::kChunks;
    row = static_cast<int32_t>(own_row);
    chunk = static_cast<int32_t>(own_chunk);
    target = own_row * Shape::kRowBytes;
    if constexpr (Shape::kWarpgroups) {
      target += own_chunk / 8 * Shape::kPanelBytes +
                ((own_chunk % 8 * 16) ^ swizzle<Shape::kDim>(own_row));
    } else {
      target += (own_chunk * 16) ^ swizzle<Shape::kDim>(own_row);
    }
  }
};

/// Which keys of a tile lie one behind the other.
enum class Runs : uint8_t {
  kTile,  // all: no pages, or pages of whole tiles
  kStep,  // those of the kRowsOnce rows that a team copies at a time
  kNone,
};

/// A team's view of the keys of one (sequence, key-value head).
struct KeyCopies {
  const char* k;
  const char* v;
  const int32_t* pages;  // of the sequence; null without a page table
  int32_t first, last;   // keys outside are not read; they become zeros
  Runs runs;
};

template <class Shape>
__device__ __forceinline__ KeyCopies key_copies(const Params& params, const Unit& unit,
                                                const Work& work) {
  const bool paged = params.pages != nullptr;
  const int64_t sequence = paged ? 0 : unit.sequence;
  KeyCopies copies;
  copies.k = params.k.data + sequence * params.k.sequence + unit.key_head * params.k.head +
             work.rows.key_first * params.k.row;
  copies.v = params.v.data + sequence * params.v.sequence + unit.key_head * params.v.head +
             work.rows.key_first * params.v.row;
  copies.pages = paged ? params.pages + unit.sequence * params.pages_sequence : nullptr;
  copies.first = work.first;
  copies.last = work.last;
  const auto page_rows = paged ? params.page_size.divisor : 0;
  copies.runs = page_rows % Shape::kTileKeys == 0   ? Runs::kTile
                : page_rows % Shape::kRowsOnce == 0 ? Runs::kStep
                                                    : Runs::kNone;
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

/// Entries of the page table: of each row that the thread copies of a tile, of the lane's one of
/// its steps, or of all of the tile. Each is a round trip, so they are fetched a tile ahead of
/// their use; a single one before that tile's copies are asked for, behind which it would wait for
/// them.
template <class Shape>
struct TilePages {
  int32_t entry[Shape::kRowSteps * Shape::kTurns];
  int32_t following = 0;
  static_assert(Shape::kRowSteps <= 32);

  /// The entry of a tile of which one is needed, before the copies of the tile before it.
  __device__ __forceinline__ void fetch_single(const Params& params, const KeyCopies& copies,
                                               int32_t tile_key) {
    if (copies.pages != nullptr && copies.runs != Runs::kNone) {
      // The first key of a tile may be one that is not read, the last never is.
      const int32_t key = copies.runs == Runs::kTile ? max(tile_key, copies.first)
                                                     : copied_key(copies, tile_key, lane_step());
      following = copies.pages[params.page_size.quotient(key)];
    }
  }

  /// The entries of a tile of which more are needed, behind the copies of the tile before it.
  __device__ __forceinline__ void fetch_rows(const Params& params, const KeyCopies& copies,
                                             int32_t tile_key) {
    if (copies.pages == nullptr || copies.runs != Runs::kNone) {
      return;
    }
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps * Shape::kTurns; ++i) {
      const int32_t row = TileChunk<Shape>(i % Shape::kTurns).row;
      const int32_t key = copied_key(copies, tile_key + row, i / Shape::kTurns);
      entry[i] = copies.pages[params.page_size.quotient(key)];
    }
  }

  /// Waits for what fetch_single() asked for.
  __device__ __forceinline__ void advance(const KeyCopies& copies) {
    if (copies.runs != Runs::kNone) {
      entry[0] = following;
    }
  }

  /// The step that a lane looks up for its warp.
  static __device__ __forceinline__ int lane_step() {
    return static_cast<int>(threadIdx.x % 32 % Shape::kRowSteps);
  }

  /// The key whose row is copied in a step, or the nearest one that may be read.
  static __device__ __forceinline__ int32_t copied_key(const KeyCopies& copies, int32_t first_key,
                                                       int step) {
    return min(max(first_key + step * Shape::kRowsOnce, copies.first), copies.last - 1);
  }
};

/// Starts the copies of a tile of K and V into a stage.
template <class Shape>
__device__ __forceinline__ void load_tile(const Params& params, const KeyCopies& copies,
                                          int32_t tile_key, const TilePages<Shape>& pages,
                                          uint32_t stage) {
  const auto visible = static_cast<uint32_t>(copies.last - copies.first);
  const auto copy_chunk = [&](const TileChunk<Shape>& own, int step, const char* k, const char* v) {
    const bool exists = static_cast<uint32_t>(tile_key + own.row + step * Shape::kRowsOnce -
                                              copies.first) < visible;
    const uint32_t target = stage + (own.target ^ swizzle<Shape::kDim>(step * Shape::kRowsOnce)) +
                            step * Shape::kRowsOnce * Shape::kRowBytes;
    const auto copy = [](uint32_t to, const char* from, bool is_there) {
      if constexpr (Shape::kRowBytes % 128 != 0) {
        cuda::cp_async_16_of_line(to, from, is_there);  // heads share lines
      } else {
        cuda::cp_async_16(to, from, is_there);
      }
    };
    copy(target, k + own.chunk * 16, exists && own.chunk < params.k.chunks);
    copy(target + Shape::kTileBytes, v + own.chunk * 16, exists && own.chunk < params.v.chunks);
  };
  if (copies.runs == Runs::kTile) {
    int32_t row = tile_key;
    int32_t page = 0;
    if (copies.pages != nullptr) {
      row = row_in_page(params, tile_key);
      page = checked_page(params, pages.entry[0]);
    }
    const char* k = copies.k + page * params.k.sequence + row * params.k.row;
    const char* v = copies.v + page * params.v.sequence + row * params.v.row;
    const int64_t k_step = Shape::kRowsOnce * params.k.row;
    const int64_t v_step = Shape::kRowsOnce * params.v.row;
#pragma unroll
    for (int step = 0; step < Shape::kRowSteps; ++step) {
#pragma unroll
      for (int turn = 0; turn < Shape::kTurns; ++turn) {
        const TileChunk<Shape> own(turn);
        copy_chunk(own, step, k + own.row * params.k.row, v + own.row * params.v.row);
      }
      k += k_step;
      v += v_step;
    }
  } else if (copies.runs == Runs::kStep) {
    const int32_t row =
        row_in_page(params, tile_key + TilePages<Shape>::lane_step() * Shape::kRowsOnce);
    const int32_t page = checked_page(params, pages.entry[0]);
    const int64_t lane_k = page * params.k.sequence + row * params.k.row;
    const int64_t lane_v = page * params.v.sequence + row * params.v.row;
#pragma unroll
    for (int step = 0; step < Shape::kRowSteps; ++step) {
      const char* k = copies.k + __shfl_sync(0xffffffffu, lane_k, step);
      const char* v = copies.v + __shfl_sync(0xffffffffu, lane_v, step);
#pragma unroll
      for (int turn = 0; turn < Shape::kTurns; ++turn) {
        const TileChunk<Shape> own(turn);
        copy_chunk(own, step, k + own.row * params.k.row, v + own.row * params.v.row);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps * Shape::kTurns; ++i) {
      const TileChunk<Shape> own(i % Shape::kTurns);
      const int step = i / Shape::kTurns;
      const int32_t page = checked_page(params, pages.entry[i]);
      const int32_t row =
          row_in_page(params, TilePages<Shape>::copied_key(copies, tile_key + own.row, step));
      copy_chunk(own, step, copies.k + page * params.k.sequence + row * params.k.row,
                 copies.v + page * params.v.sequence + row * params.v.row);
    }
  }
}

}  // namespace flashloom::decode
