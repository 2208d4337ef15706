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

/// Axes: every parameter of a machine, and array (N or RxC), seq, keys, heads, kv-heads, head-dim,
/// value-dim, causal, lanes (of the plain array), formats (ELEMENT/SUM).
SweepAxis parse_axis(const std::string& text);

struct SweepPoint {
  systolic::MachineConfig machine;
  systolic::AttentionProblem problem;
  int lanes = 128;
};

/// Runs the product of all axes from `base`; writes `prefix`.csv, a line a run, and `prefix`.svg,
/// utilisation over the first axis, a series for each choice of the others. Every point is checked
/// before the first runs.
void run_sweep(const SweepPoint& base, const systolic::SimulationOptions& options,
               const std::vector<SweepAxis>& axes, const std::string& prefix,
               FunctionRef<void(const std::string&)> progress);

}  // namespace flashloom::cli
