#pragma once

#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/machine/machine_state.h"
#include "flashloom/systolic/report/waveform_writer.h"

namespace flashloom::systolic {

/// The schedule as a waveform: the function in each slot and its timer's start, transfers under
/// way. A tick is a cycle.
void write_schedule_waveform(const MachineConfig& config, const Schedule& schedule,
                             WaveformWriter& writer);

/// The same with every register of the array (dump_name()), from the register-level model; `state`
/// holds the inputs. The schedule must have kept its requests.
void write_register_waveform(const MachineConfig& config, const Schedule& schedule,
                             MachineState& state, WaveformWriter& writer);

}  // namespace flashloom::systolic
