#pragma once

#include "flashloom/systolic/isa/isa.h"
#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/memory/main_memory.h"
#include "flashloom/systolic/memory/sram.h"

namespace flashloom::systolic {

/// All memories of a machine; SRAMs start as zeros.
struct MachineState {
  MachineState(const MachineConfig& config, int64_t memory_bytes)
      : spad(config.spad_row_count(), config.shape.rows),
        accumulators(config.accumulator_row_count(), config.shape.columns),
        memory(memory_bytes) {}

  Sram spad;
  Sram accumulators;
  MainMemory memory;
};

/// One row of a transfer: `row` counts the instruction's rows.
void move_row(const MachineConfig& config, const Instruction& instruction, int64_t row,
              MachineState& state);

}  // namespace flashloom::systolic
