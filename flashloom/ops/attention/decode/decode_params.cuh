#pragma once

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "flashloom/ops/attention/divisor.h"
#include "flashloom/ops/attention/patterns/sequence_geometry.h"

namespace flashloom::decode {

// Everything that runs before the first load and after the last one costs each call its full time,
// on instruction fetch above all: divisions and second copies of inlined code are kept out.

/// Rows of k or v. Strides in bytes; `sequence` is that of a page if there is a page table.
struct KeyRows {
  const char* data;
  int64_t sequence, head, row;
  int32_t chunks;  // 16-byte chunks a row
};

struct Params {
  GeometrySource source;  // starts resolved to an offset; offset and bounds within 2^40
  Divisor group;          // query heads a key-value head
  int32_t row_tiles;      // tiles of rows a (sequence, key-value head), by the host's bound
  Divisor parts;          // blocks a unit, where each unit has as many
  Divisor row_tile_count, key_heads;  // of a block's number
  Divisor lanes;        // of the line: key-value heads side by side, a block each; divides them
  int32_t meets;        // all blocks run at once, so that those of a unit may wait for each other
  int32_t tiles_block;  // fewest tiles of keys a stretch
  int32_t ahead;        // tiles a team has under way: 1, or kStages - 1

  const void* q;
  int64_t q_sequence, q_head, q_row;  // elements
  int32_t q_chunks;                   // rows of q start at multiples of 16 bytes
  KeyRows k, v;
  const int32_t* pages;  // null without a page table
  int64_t pages_sequence;
  Divisor page_size;
  int32_t page_count;

  void* out;
  int64_t out_sequence, out_head, out_row;  // elements
  int32_t out_is_f32;
  int32_t value_dim;
  float* lse;  // may be null
  int64_t lse_sequence, lse_head, lse_row;

  // A row's scores are kept as they leave the products, a positive `unit` from base 2. Where they
  // are more than that (`adjusts`), they are in base 2 at once: without softcap x = s scale; with
  // one, c tanh(s scale / c) written as c - 2 c / (2^(s cap_scale) + 1).
  int32_t adjusts;
  float unit;          // to base 2: scale, or 1
  float unit_natural;  // to natural units
  float scale;
  float cap;        // c log2(e), 0 without
  float cap_scale;  // 2 log2(e) scale / c
  const float* alibi;
  int64_t alibi_sequence, alibi_head;
  const float* sinks;
  int64_t sinks_head;

  // Each slot_floats: sums (slot_rows, kDim), then statistics (slot_rows, 2). Two a block of the
  // line, one a part of a unit.
  float* slots;
  int32_t slot_rows;
  int32_t slot_floats;           // a multiple of 4
  unsigned long long* counters;  // one a unit
  unsigned long long nonce;      // 48 bits, not 0
  int32_t* status;
};

/// With what warpgroups need: the copy engine's maps of k and v, boxes of box_rows rows; 0: none,
/// and threads copy.
struct MappedParams : Params {
  CUtensorMap k_map, v_map;
  int32_t box_rows;
  int32_t keys_packed;  // one sequence behind the other, without a dimension of their own
};

/// How a call's work is cut: each unit into parts, or the line of all into stretches.
enum Cut : uint8_t { kParts = 1, kLine = 2, kEither = 3 };

/// What a kernel is compiled for. A team of kRowWarps warps, 16 rows each, walks its own tiles of
/// keys through its own kStages buffers; the kTeams teams of a block take tiles in turn. Teams of
/// four warps are warpgroups and multiply by wgmma, all others by mma.sync. Teams copy their own
/// tiles, or, with kHasProducer, one more warp has the copy engine fetch those of all.
template <class T, int kDimension, int kRowWarpCount, int kTeamCount, int kKeySteps,
          int kStageCount, int kResidentBlocks, bool kHasProducer = false, Cut kCutsOnly = kEither>
struct Shape {
  using Type = T;
  static constexpr int kDim = kDimension;
  static constexpr int kRowWarps = kRowWarpCount;
  static constexpr bool kWarpgroups = kRowWarps == 4;
  static constexpr int kTeams = kTeamCount;
  static constexpr int kSteps = kKeySteps;  // of 16 keys
  // Steps whose scores are worked on together, to hide the products' latency; registers bound it.
  static constexpr int kJoint = kWarpgroups || kDim <= 128 ? kSteps : 1;
  static constexpr int kStages = kStageCount;
  static constexpr int kResident = kResidentBlocks;  // a multiprocessor
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kTileKeys = 16 * kSteps;
  static constexpr int kTeamThreads = 32 * kRowWarps;
  static constexpr bool kProducer = kHasProducer;
  static constexpr Cut kCuts = kCutsOnly;
  static constexpr int kTeamsThreads = kTeams * kTeamThreads;
  static constexpr int kThreads = kTeamsThreads + (kProducer ? 32 : 0);
  static constexpr int kChunks = kDim / 8;  // of 16 bytes
  static constexpr int kTileBytes = kTileKeys * kDim * 2;
  static constexpr int kTeamBytes = kStages * 2 * kTileBytes;
  // A piece of a unit takes as long to begin and end as a block takes to read 64 KB, of 64 rows
  // four times that.
  static constexpr int kPieceBytes = kRowWarps == 4 ? 256 << 10 : 64 << 10;
  static constexpr int kPieceTiles = kPieceBytes > 2 * kTileBytes ? kPieceBytes / (2 * kTileBytes)
                                                                  : 1;
  // A team copies a tile a row behind the other, a chunk a thread. One turn of its threads is whole
  // rows, or, of 12 or 24 chunks, three are; then it goes on kRowsOnce rows further.
  static constexpr int kTurns = kChunks % 3 == 0 ? 3 : 1;
  static constexpr int kRowsOnce = kTurns * kTeamThreads / kChunks;
  static constexpr int kRowSteps = kTileKeys / kRowsOnce;
  // From a row of a tile to the next, and from a panel of 64 columns to the next (wgmma).
  static constexpr int kRowBytes = kWarpgroups ? 128 : kDim * 2;
  static constexpr int kPanelBytes = kTileKeys * 128;
  // The teams' sums before they are joined: rows of f32, padded so that stores of two columns by
  // eight rows meet no bank twice. They lie where the keys were.
  static constexpr int kSumPitch = kDim + 8;
  static constexpr int kSumBytes = kTeams * kRows * kSumPitch * 4;
  static constexpr int kBufferBytes =
      kTeams * kTeamBytes > kSumBytes ? kTeams* kTeamBytes : kSumBytes;
  // Queries as operands: copied there for warpgroups, and where registers have no room for them
  // beside the sums. A producer's warpgroups keep them in registers.
  static constexpr bool kQueriesInShared = kWarpgroups ? !kProducer : kDim > 128;
  static constexpr int kSharedBytes = kBufferBytes + (kQueriesInShared ? kRows * kDim * 2 : 0);
  using KernelParams = std::conditional_t<kProducer, MappedParams, Params>;
  static_assert(kTileKeys % kRowsOnce == 0 && kTurns * kTeamThreads % kChunks == 0);
  static_assert(!kProducer || (kWarpgroups && kDim == 64));
  static_assert(!kWarpgroups || (kDim % 64 == 0 && kBufferBytes % 1024 == 0));
};

}  // namespace flashloom::decode
