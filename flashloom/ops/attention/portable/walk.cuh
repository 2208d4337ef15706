#pragma once

#include <cstdint>
#include <new>

#include "flashloom/ops/attention/patterns/sequence_geometry.h"
#include "flashloom/ops/attention/patterns/tile_iterator.h"

// The block iterator on a thread block. One thread turns it into a short list of runs in shared
// memory; all threads walk the list, so that no thread pays for the iterator in registers.

namespace flashloom::portable {

inline constexpr int kRunsAtATime = 12;
/// What a block may use on compute capability 8.6 and 8.9; 8.0 and 9.0 have more.
inline constexpr int kLeastSharedMemory = 99 * 1024;
/// Positions of padding rows, far from all others and from each other's kind.
inline constexpr int64_t kInnerPadding = int64_t{1} << 40;
inline constexpr int64_t kOuterPadding = -kInnerPadding;

/// One inner tile.
struct Step {
  int32_t tile;
  uint32_t flags;
  int32_t partial;
};

struct SharedWalk {
  alignas(16) unsigned char geometry_bytes[sizeof(HeadGeometry)];
  alignas(16) unsigned char iterator_bytes[sizeof(TileIterator)];
  TileRun runs[kRunsAtATime];
  int32_t count;
  int32_t complete;

  __device__ HeadGeometry& geometry() { return *reinterpret_cast<HeadGeometry*>(geometry_bytes); }

  __device__ TileIterator& iterator() { return *reinterpret_cast<TileIterator*>(iterator_bytes); }

  /// Not inlined, and so compiled once: by one thread, once in kRunsAtATime runs.
  __device__ __noinline__ void fill() {
    count = 0;
    complete = 0;
    while (count < kRunsAtATime && complete == 0) {
      TileRun run = {};
      if (iterator().next(run)) {
        runs[count++] = run;
      } else {
        complete = 1;
      }
    }
  }

  /// By one thread, between barriers.
  __device__ __noinline__ void start(const GeometrySource& source, int32_t sequence, int32_t head,
                                     bool keys_outside, int32_t outer_tile, TileShape shape) {
    HeadGeometry head_geometry =
        resolve_head(source, resolve_rows(source, sequence), sequence, head);
    if (keys_outside) {
      head_geometry = transposed(head_geometry);
    }
    new (geometry_bytes) HeadGeometry(head_geometry);
    new (iterator_bytes) TileIterator(geometry(), outer_tile, shape);
    fill();
  }
};

/// A thread's place in the list; the same in all threads.
class Walk {
 public:
  __device__ explicit Walk(SharedWalk& shared) : shared_(shared) {}

  /// By all threads together.
  __device__ __forceinline__ bool next(Step& step) {
    if (run_ == shared_.count) {
      if (shared_.complete != 0) {
        return false;
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        shared_.fill();
      }
      __syncthreads();
      run_ = 0;
      if (shared_.count == 0) {
        return false;
      }
    }
    const TileRun& run = shared_.runs[run_];
    step = {run.first + offset_, run.flags, run.partial};
    if (++offset_ == run.count) {
      offset_ = 0;
      ++run_;
    }
    return true;
  }

 private:
  SharedWalk& shared_;
  int32_t run_ = 0;
  int32_t offset_ = 0;
};

}  // namespace flashloom::portable
