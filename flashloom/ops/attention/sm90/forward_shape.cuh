#pragma once

#include <algorithm>
#include <cstdint>

#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/forward_params.cuh"

// What the parts of the forward kernel share: tile shapes, work, shared memory.

namespace flashloom::sm90 {

inline constexpr uint32_t kMaximumShared = 227 * 1024;  // bytes a block

enum class ForwardKind {
  plain,
  blocks,   // block masks
  general,  // everything in ForwardRule
};

/// Queries a tile of kernels that walk lists.
inline constexpr int32_t kListedRows = 128;

/// Shape and schedule of a kernel.
///   kDim       columns of q, k and v; tensors with less are filled with zeros
///   kGroups    consumer warpgroups, 64 queries each
///   kKeys      keys a tile
///   kStages    tiles of keys (and of values) in flight
///   kQStages   tiles of queries in flight
///   kTurns     warpgroups take turns to issue their products
///   kKind      what it can do beyond ends, windows and sinks
///   kTeams     teams of kGroups warpgroups in a block, each with tiles of queries and rings of its
///              own; what follows is of one team unless it says otherwise
template <class T_, int kDim_, int kGroups_, int kKeys_, int kStages_, int kQStages_, bool kTurns_,
          ForwardKind kKind = ForwardKind::plain, int kTeams_ = 1>
struct ForwardShape {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kStages = kStages_;
  static constexpr int kQStages = kQStages_;
  static constexpr bool kTurns = kTurns_;
  static constexpr int kTeams = kTeams_;
  static_assert(kTeams == 1 || (kTeams == 2 && !kTurns), "two producer warps a team");
  static constexpr bool kGeneral = kKind == ForwardKind::general;
  // The producer walks lists of tiles and tells the consumers of each.
  static constexpr bool kListed = kKind != ForwardKind::plain;
  static constexpr int kRows = 64 * kGroups;
  static_assert(!kListed || kRows == kListedRows);
  static constexpr int kBlockGroups = kTeams * kGroups;      // consumer warpgroups of the block
  static constexpr int kThreads = 128 * (kBlockGroups + 1);  // of the block
  // What the launch hands out evenly (168, 128 or 96 a thread), moved to where it is needed. With
  // 24 instead of 40, the producers of two consumer warpgroups spill.
  static constexpr int kConsumerRegisters =
      kBlockGroups == 2 ? 232 : (kBlockGroups == 3 ? 160 : 112);
  static constexpr int kProducerRegisters = kBlockGroups == 2 ? 40 : 32;
  static constexpr int kPanels = (kDim + 63) / 64;
  static constexpr uint32_t kQBytes = kPanels * cuda::panel_bytes(kRows);
  static constexpr uint32_t kTileBytes = kPanels * cuda::panel_bytes(kKeys);
  // When exponentials are taken (ForwardPipeline::step): quarters of the keys before the wait for
  // the values, and whether their sums wait until then. Where three warpgroups of 64 columns wait
  // for the special function units, sums between them would hold up the next exponential. At D 96
  // any other order than all of them before keeps ptxas from uniform registers: 10 % slower. Runs
  // fwd25, fwd26.
  static constexpr bool kLateSums = kGroups == 3 && kDim <= 64;
  static constexpr int kEarly = kGroups == 4 || kDim > 192 || (kGroups == 2 && kDim <= 64) ? 0
                                : kLateSums || kDim > 128                                  ? 3
                                : kGroups == 3                                             ? 4
                                                                                           : 2;
  // Results on their way out, 64 rows a warpgroup: all columns where that fits, else some panels at
  // a time.
  static constexpr uint32_t kBarrierBytes = kGroups == 4 ? 2048 : 1024;
  static constexpr uint32_t kOtherBytes =
      kBarrierBytes + kQStages * kQBytes + 2 * kStages * kTileBytes;
  static constexpr uint32_t kOutPanelBytes = cuda::panel_bytes(64);
  static constexpr int kOutPanels =
      std::min<int>(kPanels, (kMaximumShared / kTeams - kOtherBytes) / (kGroups * kOutPanelBytes));
  static_assert(kOutPanels > 0);
  static constexpr uint32_t kOutBytes = kGroups * kOutPanels * kOutPanelBytes;
  static constexpr uint32_t kSharedBytes = kOtherBytes + kOutBytes;
  // A warpgroup skips up to kRows / kKeys + 1 tiles of keys on each side while it holds a tile of
  // values; the others get as far ahead as both rings reach.
  static_assert(2 * kStages > kRows / kKeys + 1);
  static_assert(kTeams * kSharedBytes <= kMaximumShared);
  // Steps that end a tile of queries have code of their own, in which the end of rows and their
  // results run beside exponentials; more warpgroups do not have the registers.
  static constexpr bool kBorders = kGroups == 2 && !kListed && kQStages > 1;
  // A tile of queries sees its last keys but one first (see ForwardWork::swapped). Only where tiles
  // of queries and of keys are as long as one another do warpgroups mostly end at the same keys.
  static constexpr bool kSwaps = !kListed && kTurns && kRows == kKeys;
  // It sees first the last keys that all of its rows see, and a warpgroup skips what is hidden from
  // it behind those. Instead of kSwaps that costs 1 to 3 % (runs fwd35, fwd36).
  static constexpr bool kLeads = !kListed && kTurns && kQStages == 1;
};

struct ForwardTile {
  int32_t batch, head, row;  // row: first query of the tile
};

struct KeyTiles {
  int32_t begin, end;
};

/// Tile of step `step` of a tile of queries; `swap` is the last step but one if the last two change
/// places, else behind all steps.
__device__ __forceinline__ int32_t swapped_tile(int32_t step, int32_t swap) {
  return step >= swap ? 2 * swap + 1 - step : step;
}

/// Tile of step `step`, counted down from `first`, if the tile `lead` comes before all others.
__device__ __forceinline__ int32_t led_tile(int32_t step, int32_t first, int32_t lead) {
  return step == first ? lead : step + (step >= lead ? 1 : 0);
}

/// Of a consumer warpgroup, for a tile of queries.
enum class ForwardState : int32_t {
  work,
  idle,  // it has no queries
  done,  // no more work
};

/// What one consumer warpgroup does with a tile of queries.
struct alignas(16) ForwardPart {
  int32_t begin, end;    // its tiles of keys
  int32_t open, closed;  // tiles before `open` and from `closed` on hide something
  int32_t left, right;   // tiles that others see and it does not
  int32_t state;         // ForwardState

  union {             // see ForwardWork
    int32_t swapped;  // the last two tiles change places; with kSwaps
    int32_t lead;     // the tile that comes first, or -1: the last of its own; with kLeads
  };
};

/// What the producer tells the consumers about a tile of queries: the divisions that find it are
/// done once, ahead of time.
struct ForwardWork {
  ForwardTile tile;
  KeyTiles range;  // begin < 0: no more work

  // The last two tiles of keys change places, or `lead` comes before all others. A row that sees
  // few keys of its first tile has a small sum, so its maximum may move again with the next keys
  // (see set_limits()), and the other warpgroup waits for that.
  union {
    int32_t swapped;
    int32_t lead;
  };

  Sequence sequence;
  int64_t lse;  // of row 0 of the sequence and head, in elements
};

/// Tiles of queries that shared memory tells of.
inline constexpr uint32_t kForwardSlots = 4;

/// A tile of keys in the ring of a kernel that walks lists.
struct alignas(16) ForwardStep {
  int32_t tile;     // -1: hidden altogether
  int32_t partial;  // block of bits, or -1; to the consumers: where the tile's bits start, in words
  int32_t last;     // of its tile of queries
  int32_t next;     // the tile that follows; -1: none, or one with bits
};

template <class Shape>
struct ForwardBarriers {
  uint64_t q_full[Shape::kQStages], q_empty[Shape::kQStages];
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kStages], v_empty[Shape::kStages];
  uint64_t v_border[Shape::kStages];  // values that the producer clears before it hands them on
  uint64_t work_full[kForwardSlots], work_empty[kForwardSlots];
  uint64_t draw;  // a phase a tile of queries: its last keys are being loaded
  ForwardWork work[kForwardSlots];
  ForwardPart parts[kForwardSlots][Shape::kGroups];
  float slopes[kForwardSlots];  // ALiBi's of the work
  ForwardStep steps[Shape::kStages];
};

}  // namespace flashloom::sm90
