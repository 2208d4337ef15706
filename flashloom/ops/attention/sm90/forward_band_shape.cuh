#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/divisor.h"
#include "flashloom/ops/attention/sm90/forward_shape.cuh"

// Parameters, work and shared memory of the forward kernel for narrow bands.

namespace flashloom::sm90 {

/// Tiles of keys that a tile of queries may see.
inline constexpr int32_t kBandReach = 3;

///   kDim     columns of q, k and v; tensors with less are filled with zeros
///   kGroups  consumer warpgroups; each takes a tile of 64 queries at a time
///   kQStages, kStages  tiles of queries, and of keys and of values, in shared memory
template <class T_, int kDim_, int kGroups_, int kQStages_, int kStages_>
struct ForwardBandShape {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kQStages = kQStages_;
  static constexpr int kStages = kStages_;
  static_assert(kGroups == 2 || kGroups == 3);
  static constexpr int kTile = 64;
  static constexpr int kKeys = kTile;  // as clear_rows() names it
  static constexpr int kPanels = (kDim + 63) / 64;
  static constexpr int kThreads = 128 * (kGroups + 1);
  // What the launch hands out evenly (168 or 128 a thread), moved to where it is needed.
  static constexpr int kConsumerRegisters = kGroups == 2 ? 232 : 152;
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : kGroups == 3 ? 56 : 32;
  static constexpr uint32_t kTileBytes = kPanels * cuda::panel_bytes(kTile);
  static constexpr uint32_t kHeadBytes = 2048;  // barriers and segments
  static constexpr uint32_t kSharedBytes = kHeadBytes + (kQStages + 2 * kStages) * kTileBytes;
  static_assert(kSharedBytes <= kMaximumShared);
  // Each warpgroup holds a tile of queries and the one whose results are on their way out. The
  // loading thread waits for room for queries, so their stages bound what is in flight: less than
  // two tiles ahead is slow, and so is more, run win7.
  static_assert(kQStages > kGroups && kStages > kBandReach);
};

struct ForwardBandParams {
  ForwardParams forward;
  int32_t heads;      // of keys and values
  int32_t sequences;  // tiles of queries of a sequence, if all are as long; 0: packed
  int32_t line;       // tiles of queries of all sequences, a head behind the other
  int32_t shift;      // the first tile of keys that tile 0 of queries may see
  int32_t columns;    // runs a head
  Divisor group;      // heads_per_key

  /// The tile of queries of an item.
  __device__ __forceinline__ int32_t tile_of(int32_t item) const { return group.quotient(item); }
};

/// Neighbouring items of one sequence and head of keys. An item is a tile of queries of one query
/// head: tile * heads_per_key + its number among the heads that share keys.
struct alignas(16) ForwardBandSegment {
  Sequence sequence;
  int32_t batch, head;          // head: of keys
  int32_t first, end;           // items; none: no more segments
  int32_t key_tile, key_end;    // tiles of keys; those that do not exist are zeros
  int32_t border;               // the tile of keys whose last rows are not its own, or INT32_MIN
  uint32_t number, key_number;  // of the first item and tile of keys, among the block's
  int64_t lse;                  // of row 0 of the first query head, in elements
};

inline constexpr uint32_t kBandSlots = 8;  // segments that shared memory tells of

template <class Shape>
struct ForwardBandBarriers {
  uint64_t q_full[Shape::kQStages], q_empty[Shape::kQStages];
  uint64_t full[Shape::kStages], empty[Shape::kStages];  // pairs of keys and values
  uint64_t border[Shape::kStages];  // pairs whose values are cleared before they are handed on
  uint64_t segment_full[kBandSlots], segment_empty[kBandSlots];
  ForwardBandSegment segments[kBandSlots];
};

template <class Shape>
struct ForwardBandShared {
  char* base;

  __device__ __forceinline__ ForwardBandBarriers<Shape>& barriers() const {
    static_assert(sizeof(ForwardBandBarriers<Shape>) <= Shape::kHeadBytes);
    return *reinterpret_cast<ForwardBandBarriers<Shape>*>(base);
  }

  __device__ __forceinline__ char* queries(uint32_t stage) const {
    return base + Shape::kHeadBytes + stage * Shape::kTileBytes;
  }

  __device__ __forceinline__ char* keys(uint32_t stage) const {
    return queries(Shape::kQStages + stage);
  }

  __device__ __forceinline__ char* values(uint32_t stage) const {
    return keys(Shape::kStages + stage);
  }
};

/// A role's way through the segments.
struct ForwardBandWalk {
  cuda::PipelineState<kBandSlots> slot;

  template <class Shape>
  __device__ __forceinline__ const ForwardBandSegment& wait(ForwardBandBarriers<Shape>& barriers,
                                                            const char* role) const {
    cuda::mbarrier_wait(&barriers.segment_full[slot.stage], slot.parity, {role, "segment_full"});
    return barriers.segments[slot.stage];
  }

  /// By one lane, when the warp has read the segment.
  template <class Shape>
  __device__ __forceinline__ void release(ForwardBandBarriers<Shape>& barriers) const {
    cuda::mbarrier_arrive(&barriers.segment_empty[slot.stage]);
  }
};

}  // namespace flashloom::sm90
