#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/core/function_ref.h"
#include "flashloom/systolic/array/register_array.h"
#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/machine/machine_state.h"

namespace flashloom::systolic {

/// What an observer sees of a cycle: the registers at its beginning, what is driven, and the row of
/// the accumulation SRAM that is written at its end (null if none).
struct ObservedCycle {
  int64_t cycle;
  const ArrayState& registers;
  const ArrayDrive& drive;
  const AccumulatorWrite* write;
};

/// Plays a schedule (which must hold its requests) register by register: every row moves in its own
/// cycle, every PE takes every step. For arrays up to about 32 rows.
void run_reference(const MachineConfig& config, const Schedule& schedule, MachineState& state,
                   FunctionRef<void(const ObservedCycle&)> observe);

}  // namespace flashloom::systolic
