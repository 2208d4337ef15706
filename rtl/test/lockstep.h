#pragma once

// Compares a run of the RTL with the simulator, cycle by cycle.

#include <cstdint>
#include <string>
#include <vector>

#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/memory/main_memory.h"
#include "rtl/test/engine_trace.h"

namespace flashloom::rtl {

/// What the RTL did when: its own issues and transfers, for the simulator to replay.
systolic::Schedule schedule_of(const systolic::MachineConfig& config,
                               const std::vector<uint32_t>& words, const EngineTrace& trace);

/// Replays decoder, queues, semaphores and the issue rule of the simulator against the cycles in
/// which the RTL took words and finished transfers, and compares what the RTL's registers counted
/// with it; returns the first difference, or nothing.
std::string control_difference(const systolic::MachineConfig& config,
                               const systolic::Schedule& schedule, const EngineTrace& trace);

/// Runs the register-level reference on the RTL's schedule. `memory` is what the program started
/// with and is changed as the simulator changes it. Returns the first register of those that the
/// trace kept, or written row of sums, that differs, with its cycle; or nothing.
std::string register_difference(const systolic::MachineConfig& config,
                                const systolic::Schedule& schedule, const EngineTrace& trace,
                                systolic::MainMemory& memory);

}  // namespace flashloom::rtl
