#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/decode/decode_params.cuh"

namespace flashloom::decode {

/// How a call is cut and where its workspace goes; from host shapes alone.
struct Plan {
  int64_t units, parts, blocks, tiles_block, row_tiles, slot_rows;
  int64_t slot_floats;
  int64_t counter_bytes, slot_bytes;

  int64_t bytes() const { return counter_bytes + slot_bytes; }
};

inline int64_t multiprocessors(const Device& device) {
  int count = 0;
  cuda::check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index),
              "cudaDeviceGetAttribute");
  return count;
}

/// Whether units are cut into equal parts: all have the host's lengths, or the caller says so.
inline bool cuts_units(const AttentionOptions& options) {
  const AttentionSequences& sequences = options.sequences;
  const bool uniform =
      !sequences.cu_query && !sequences.cu_key && !sequences.used_query && !sequences.used_key;
  return uniform || options.execution.splits > 0;
}

template <class Shape>
Plan make_plan(const AttentionInputs& inputs, const AttentionOptions& options) {
  // More parts than this have nothing left to share, and their counts fit 16 bits.
  constexpr int64_t kMaxParts = 4096;
  // Two tiles of keys a team: below that a block costs more than it reads.
  constexpr int64_t kTilesBlock = 2 * Shape::kTeams;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const GeometrySource source = geometry_source(inputs, options);
  Plan plan = {};
  if (source.key_heads == 0) {
    return plan;
  }
  const int64_t rows = int64_t{source.heads} / source.key_heads * source.max_query;
  plan.row_tiles = ceil_div(rows, Shape::kRows);
  plan.slot_rows = std::min<int64_t>(rows, Shape::kRows);
  plan.units = int64_t{source.sequences} * source.key_heads * plan.row_tiles;
  if (plan.units == 0) {
    return plan;
  }
  int64_t keys = source.max_key;
  if (source.left >= 0 && source.right >= 0) {
    keys = std::min(keys, source.left + source.right + source.max_query);
  }
  const int64_t tiles = plan.units * std::max<int64_t>(1, ceil_div(keys, Shape::kTileKeys));
  // A multiprocessor takes in keys at several times its share of the memory's rate, so blocks need
  // not fill all of them: a few more or fewer are as fast, parts that cross units are not.
  const int64_t filled = std::max<int64_t>(
      1, static_cast<int64_t>(static_cast<float>(multiprocessors(inputs.q.device)) *
                              options.execution.multiprocessor_share));
  plan.tiles_block = kTilesBlock;
  if (cuts_units(options)) {
    const int64_t least = filled / plan.units;
    plan.parts = least * plan.units * 4 >= filled * 3 ? least : least + 1;
    plan.parts = std::min(plan.parts, ceil_div(tiles, plan.units * kTilesBlock));
    if (options.execution.splits > 0) {
      plan.parts = std::min<int64_t>({options.execution.splits, tiles / plan.units, kMaxParts});
    }
    plan.blocks = plan.units * plan.parts;
  } else {
    plan.blocks = std::clamp<int64_t>(ceil_div(tiles, kTilesBlock), 1, filled * Shape::kResident);
  }
  plan.slot_floats = ceil_div(plan.slot_rows * (Shape::kDim + 2), 4) * 4;
  const int64_t slots = plan.parts == 1 ? 0 : plan.parts > 0 ? plan.blocks : 2 * plan.blocks;
  plan.counter_bytes = slots > 0 ? ceil_div(plan.units * 8, 64) * 64 : 0;
  plan.slot_bytes = ceil_div(slots * plan.slot_floats * 4, 64) * 64;
  return plan;
}

/// Key-value heads that lie side by side on the line: as many as leave few blocks without a
/// stretch.
inline int64_t line_lanes(int64_t blocks, int64_t key_heads) {
  int64_t lanes = key_heads;
  while (key_heads % lanes != 0 || blocks / lanes * lanes * 16 < blocks * 15) {
    --lanes;  // ends at 1
  }
  return lanes;
}

}  // namespace flashloom::decode
