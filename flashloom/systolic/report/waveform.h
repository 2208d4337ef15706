#pragma once

#include <cstdint>
#include <string>

#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/machine/machine_state.h"

namespace flashloom::systolic {

/// A value change dump of the schedule: the function in each slot and its timer's start, transfers
/// under way. A tick is a cycle. `vcd2fst` of GTKWave makes an FST of it.
std::string schedule_vcd(const MachineConfig& config, const Schedule& schedule);

/// The same with every register of the array (dump_name()), from the register-level model; `state`
/// holds the inputs. The schedule must have kept its requests.
std::string register_vcd(const MachineConfig& config, const Schedule& schedule,
                         MachineState& state);

}  // namespace flashloom::systolic
