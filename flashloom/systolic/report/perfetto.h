#pragma once

#include <string>

#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// The schedule in the trace event format that ui.perfetto.dev opens: a track a slot, the transfers
/// of loads and stores, bytes under way. One microsecond of the trace is one cycle.
std::string perfetto_trace(const MachineConfig& config, const Schedule& schedule);

/// Every row that moved: "instruction,port,kind,address,bytes,issued,finished". The schedule must
/// have kept its requests.
std::string request_csv(const Schedule& schedule);

}  // namespace flashloom::systolic
