#pragma once

#include <string>
#include <vector>

#include "flashloom/core/function_ref.h"
#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/report/simulation.h"

namespace flashloom::cli {

/// One axis of a sweep: "bandwidth=50,100,200".
struct SweepAxis {
  std::string name;
  std::vector<std::string> values;
};

/// Axes: every parameter of a machine, and array (N or RxC), seq, keys, heads, head-dim, value-dim,
/// formats (ELEMENT/SUM).
SweepAxis parse_axis(const std::string& text);

/// Runs the product of all axes; writes `prefix`.csv, a line a run, and `prefix`.svg, utilisation
/// over the first axis, a series for each choice of the others.
void run_sweep(const systolic::MachineConfig& machine, const systolic::AttentionProblem& problem,
               const systolic::SimulationOptions& options, const std::vector<SweepAxis>& axes,
               const std::string& prefix, FunctionRef<void(const std::string&)> progress);

}  // namespace flashloom::cli
