#pragma once

#include "flashloom/ops/attention/decode/decode_line.cuh"
#include "flashloom/ops/attention/decode/decode_merge.cuh"

namespace flashloom::decode {

// Slots of the workspace, through which the parts of a unit are joined.

/// The parts of a unit, and the block's place among them.
struct Joint {
  Unit unit;
  int32_t part, parts;
  int32_t first_slot, second_slot, slot_step;

  __device__ __forceinline__ int32_t slot(int32_t i) const {
    return i == 0 ? first_slot : second_slot + (i - 1) * slot_step;
  }
};

/// Where each unit has as many parts, a slot each.
__device__ __forceinline__ Joint joint_of_parts(const Params& params, const Part& own) {
  const auto parts = static_cast<int32_t>(params.parts.divisor);
  return {own.unit, own.part, parts, own.index * parts, own.index * parts + 1, 1};
}

/// Where stretches share a unit of the line. Only the first of them can have begun it behind
/// another.
__device__ __forceinline__ Joint joint_of_line(const Stretch& stretch, const Unit& unit,
                                               const Work& work) {
  const Line& line = stretch.line;
  const int32_t first = line.owner(unit.start);
  const int32_t count = line.owner(unit.start + work.tiles - 1) - first + 1;
  return {unit,
          stretch.number - first,
          count,
          line.slot(first, unit.start),
          2 * (first + 1) * line.lanes + line.lane,
          2 * line.lanes};
}

/// A slot: sums (slot_rows, kDim), then statistics (slot_rows).
template <class Shape>
__device__ __forceinline__ float* slot_sums(const Params& params, int32_t slot) {
  return params.slots + int64_t{slot} * params.slot_floats;
}

template <class Shape>
__device__ __forceinline__ RowStats* slot_stats(const Params& params, int32_t slot) {
  return reinterpret_cast<RowStats*>(slot_sums<Shape>(params, slot) +
                                     params.slot_rows * Shape::kDim);
}

/// The sums of a block's only team, from its registers to a slot.
template <class Shape>
__device__ __forceinline__ void write_part(const Params& params, int32_t slot, int32_t row_count,
                                           RowState<Shape>& state) {
  const uint32_t lane = threadIdx.x % 32;
  state.add_lanes();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto row = static_cast<int32_t>(threadIdx.x / 32 * 16 + lane / 4 + r * 8);
    if (row >= row_count) {
      continue;
    }
    if (lane % 4 == 0) {
      slot_stats<Shape>(params, slot)[row] = {state.largest[r], state.sum[r]};
    }
    float* target = slot_sums<Shape>(params, slot) + row * Shape::kDim + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < Shape::kDim / 8; ++c) {
      *reinterpret_cast<float2*>(target + c * 8) = {state.out[c][2 * r], state.out[c][2 * r + 1]};
    }
  }
}

/// The joined sums of a block's teams: the result if they are the whole unit, else into a slot.
template <class Shape>
__device__ __forceinline__ void write_teams(const Params& params, const Unit& unit,
                                            const Work& work, bool whole, int32_t slot,
                                            const RowStats* stats, const float* sums) {
  constexpr int32_t kColumns = Shape::kDim / 4;
#pragma unroll 1
  for (auto item = static_cast<int32_t>(threadIdx.x); item < work.row_count * kColumns;
       item += Shape::kThreads) {
    const int32_t row = item / kColumns;
    const int32_t column = item % kColumns * 4;
    const JoinedRow joined = join_teams<Shape>(params, row, column, stats, sums);
    if (whole) {
      write_result<Shape>(params, unit, work.rows, row, column, joined);
      continue;
    }
    reinterpret_cast<float4*>(slot_sums<Shape>(params, slot))[item] = joined.value;
    if (column == 0) {
      slot_stats<Shape>(params, slot)[row] = joined.total;
    }
  }
}

}  // namespace flashloom::decode
