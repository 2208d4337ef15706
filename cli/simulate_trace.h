#pragma once

#include <string>

#include "flashloom/systolic/report/simulation.h"

namespace flashloom::cli {

/// Writes PREFIX.json for ui.perfetto.dev, PREFIX.requests.csv and the waveform PREFIX.fst; `path`
/// is the prefix or the waveform's own name, PREFIX.fst or PREFIX.vcd, whose suffix chooses its
/// format. The run must have kept its requests.
void write_trace(const std::string& path, const systolic::Simulation& run,
                 const systolic::SimulationOptions& options);

}  // namespace flashloom::cli
