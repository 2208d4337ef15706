#pragma once

#include <cstdint>

// The block iterator. For a tile of queries, a pattern yields runs of key tiles; for a tile of keys
// (backward), runs of query tiles. Kernels of every backend walk these runs and hold no mask rule
// of their own beyond the per-pair predicates that the flags name.

#ifdef __CUDACC__
#define FLASHLOOM_HOST_DEVICE __host__ __device__
#else
#define FLASHLOOM_HOST_DEVICE
#endif

namespace flashloom {

/// Rows (queries) and keys of a kernel's tile. `rows` divides the block rows and `keys` the block
/// keys of a block mask.
struct TileShape {
  int32_t rows;
  int32_t keys;
};

/// What a kernel must still check for the pairs of a tile. kRunFull alone: nothing.
enum RunFlags : uint32_t {
  kRunFull = 0,
  kRunBounds = 1,      // keys behind the end of the sequence lie in the tile
  kRunPositions = 2,   // visibility decides pair by pair, from affine positions
  kRunIndex = 4,       // explicit positions, buckets, exclude_self decide pair by pair
  kRunBlockBits = 8,   // the bits of a partial block decide
  kRunGated = 16,      // all pairs exist and are visible, and the threshold may skip this tile
  kRunRowBounds = 32,  // queries behind the end of the sequence lie in the tile
};

/// `count` neighbouring tiles from `first` on, with the same flags.
struct TileRun {
  int32_t first;
  int32_t count;
  uint32_t flags;
  int32_t partial = -1;  // index of the block's bits with kRunBlockBits
};

}  // namespace flashloom
