#pragma once

#include "cli/attend_device.h"
#include "cli/attend_report.h"

namespace flashloom::cli {

/// Runs and times the forward pass and, if asked for, the backward pass; each for `least` seconds,
/// at least three times. Adds their rates to the report; the results hold what the last runs wrote.
void run_passes(AttendDevice& device, const AttendPlacedCall& placed, const AttendCase& call,
                double least, AttendReport& report);

}  // namespace flashloom::cli
