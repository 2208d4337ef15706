#pragma once

#include <cstdint>

#include "flashloom/core/function_ref.h"
#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/machine/machine_state.h"

namespace flashloom::systolic {

struct CollapsedOptions {
  bool soft = false;  // integer arithmetic even where vectors would do
  /// Called by one thread with the events done so far.
  FunctionRef<void(int64_t events)>* progress = nullptr;
};

/// Plays the values of a schedule in the order of its events, columns in parallel. The same bits as
/// run_reference() for programs whose semaphores order every use of a row; throws Unsupported for
/// delays that do not collapse.
void run_collapsed(const MachineConfig& config, const Schedule& schedule, MachineState& state,
                   const CollapsedOptions& options = {});

}  // namespace flashloom::systolic
