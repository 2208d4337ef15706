#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/systolic/array/array_drive.h"
#include "flashloom/systolic/array/array_state.h"
#include "flashloom/systolic/memory/sram.h"
#include "flashloom/systolic/numeric/exp2.h"
#include "flashloom/systolic/numeric/units.h"

namespace flashloom::systolic {

/// A row of the accumulation SRAM that was written.
struct AccumulatorWrite {
  int64_t cycle = 0;
  int64_t row = 0;
  std::vector<uint32_t> data;

  bool operator==(const AccumulatorWrite&) const = default;
};

/// The array register by register, one cycle a step: the reference of every faster model and of the
/// RTL. docs/systolic.md says what each register does.
class RegisterArray {
 public:
  explicit RegisterArray(const MachineConfig& config);

  const ArrayState& state() const { return state_; }

  /// One clock edge. Reads the scratchpad, reads and writes the accumulation SRAM.
  void step(const ArrayDrive& drive, const Sram& spad, Sram& accumulators);

  /// The row written by the last step, if any.
  const AccumulatorWrite* last_write() const { return wrote_ ? &write_ : nullptr; }

 private:
  struct BorderInput {
    bool valid = false;
    bool reverse_in = false;
    bool reverse_out = false;
    bool delay = false;
    std::vector<uint32_t> data;
  };

  struct ColumnCommand {
    CompareCommand command = CompareCommand::none;
    int mask_counter = 0;
  };

  // What a PE's multiply-add made of the inputs of a cycle, on its way to the outputs.
  struct Work {
    uint16_t control = 0;
    bool hit = false;
    DualRounded out = {};
    uint32_t from_above = 0;
    uint32_t from_below = 0;
  };

  // A PE's neighbours to the left.
  struct LeftInputs {
    uint32_t operand;
    uint32_t shadow;
  };

  std::vector<uint32_t> left_inputs();
  Work begin_work(const PeState& pe, uint16_t control, uint32_t left, uint32_t from_above,
                  uint32_t from_below) const;
  PeState next_pe(const PeState& pe, const Work& begun, const Work& ended,
                  const LeftInputs& left) const;
  void step_comparator(int column, const ColumnCommand& command, uint32_t score,
                       ComparatorState& next);
  void step_accumulators(const ArrayDrive& drive, Sram& accumulators, std::vector<uint32_t>& next);
  BorderInput border_of(const ArrayDrive& drive, const Sram& spad) const;

  MachineConfig config_;
  Exp2Table element_table_;      // slopes as elements, intercepts as accumulators
  Exp2Table accumulator_table_;  // both as accumulators
  ArrayState state_;
  BorderInput border_;                                // what the SRAM's read port holds
  std::vector<std::vector<uint32_t>> input_delays_;   // element i: i registers, newest first
  std::vector<std::vector<uint32_t>> output_delays_;  // column c: C - 1 - c registers
  std::vector<std::vector<uint16_t>> control_;        // of each row, column 1 first
  std::vector<ColumnCommand> commands_;               // of column 1 on
  std::vector<int> piece_counters_;
  std::vector<uint32_t> shadow_border_;     // what the SRAM's read port holds for shadow registers
  std::vector<std::vector<Work>> stages_;   // S - 1 of each PE, the newest first
  std::vector<uint32_t> accumulator_data_;  // the accumulation SRAM's read port
  bool wrote_ = false;
  AccumulatorWrite write_;
};

}  // namespace flashloom::systolic
