#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flashloom/systolic/engine/schedule.h"

namespace flashloom::systolic {

enum class CompareCommand : uint8_t {
  none,
  update,
  send_max,
  send_difference,
  send_zero,
  send_intercepts,
  reset
};
enum class AccumulateCommand : uint8_t { none, exp_s1, exp_s2, sum, scale, set_scale, reciprocal };
enum class BorderSource : uint8_t { none, spad, one, scale, slope };

/// All that the plan drives in one cycle, at column 0 and at the SRAMs.
struct ArrayDrive {
  // Left border.
  BorderSource border = BorderSource::none;
  int64_t spad_row = 0;
  int piece = 0;  // of a slope
  bool reverse_in = false;
  bool reverse_out = false;
  bool delay = false;
  // The shadow registers' own border.
  bool shadow_read = false;
  int64_t shadow_row = 0;
  bool shadow_reverse = false;
  // control_bit()'s, for each row.
  std::vector<uint16_t> control;
  CompareCommand compare = CompareCommand::none;
  int mask_counter = 0;  // of update
  // Accumulators.
  bool accumulator_read = false;
  bool accumulator_zero = false;
  int64_t accumulator_read_row = 0;
  AccumulateCommand accumulate = AccumulateCommand::none;
  int64_t accumulator_write_row = 0;
  bool reciprocal_ends = false;
};

/// An instruction in a slot: its timer in cycle t is t - start.
struct ActiveInstruction {
  Instruction instruction;
  int64_t start = 0;
};

/// What the instructions drive in this cycle, straight from the windows. Throws Error if two drive
/// the same wire: the plan forbids it.
ArrayDrive drive_of(const MachineConfig& config, std::span<const ActiveInstruction> active,
                    int64_t cycle);

}  // namespace flashloom::systolic
