#pragma once

#include <cstdint>

#include "flashloom/systolic/isa/isa.h"
#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// Rows that a matrix instruction reads from the scratchpad, and that it uses of the accumulation
/// SRAM.
int spad_rows_read(const MachineConfig& config, Function function);
int accumulator_rows_used(const MachineConfig& config, Function function);

/// Throws InvalidArgument naming the instruction and the cycle if it reaches outside a memory, or
/// asks for what the machine cannot do (a row that is not one of the SRAM's, causal with C != R).
void check_addresses(const MachineConfig& config, int64_t memory_bytes,
                     const Instruction& instruction, int index, int64_t cycle);

}  // namespace flashloom::systolic
