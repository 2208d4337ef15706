#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// A registered output.
struct Link {
  bool valid = false;
  uint32_t data = 0;

  bool operator==(const Link&) const = default;
};

/// The registers of a PE.
struct PeState {
  uint32_t reg = 0;
  bool exp2_done = false;
  Link right;
  Link down;
  Link up;
  // With a shadow register alone: it and the link through which the columns to the right load.
  uint32_t shadow = 0;
  uint32_t shadow_right = 0;

  bool operator==(const PeState&) const = default;
};

/// The registers of a column's comparator, but for its piece counter.
struct ComparatorState {
  uint32_t old_max = 0;  // -inf after a reset
  uint32_t new_max = 0;
  Link out;

  bool operator==(const ComparatorState&) const = default;
};

/// Every register that the array and the RTL must agree on, at the beginning of a cycle.
struct ArrayState {
  explicit ArrayState(const MachineConfig& config);

  PeState& pe(int row, int column) { return pes[pe_index(row, column)]; }

  const PeState& pe(int row, int column) const { return pes[pe_index(row, column)]; }

  size_t pe_index(int row, int column) const {
    return static_cast<size_t>(row) * static_cast<size_t>(columns) + static_cast<size_t>(column);
  }

  bool operator==(const ArrayState&) const = default;

  int rows;
  int columns;
  bool has_shadow;
  std::vector<PeState> pes;                  // row by row
  std::vector<ComparatorState> comparators;  // a column each
  std::vector<uint32_t> scales;              // of the accumulators, a column each
};

inline constexpr int kPeWords = 8;
inline constexpr int kComparatorWords = 4;
inline constexpr int kShadowWords = 2;

/// The dump: for each row, for each column reg, exp2_done, right_valid, right, down_valid, down,
/// up_valid, up; then for each column old_max, new_max, out_valid, out; then each column's scale;
/// then, in arrays with a shadow register, for each row, for each column shadow, shadow_right.
std::vector<uint32_t> dump(const ArrayState& state);
/// "pe[3][0].down": what a place of the dump holds.
std::string dump_name(const MachineConfig& config, size_t index);

}  // namespace flashloom::systolic
