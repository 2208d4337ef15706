#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flashloom/systolic/report/simulation.h"

namespace flashloom::systolic {

/// A number with where it comes from.
struct SourcedNumber {
  std::string_view name;
  double value;
  std::string_view unit;
  std::string_view source;
};

/// Where the cycles of a run went, seen from column 0: each cycle between two issues belongs to the
/// phase of the earlier instruction that it is in; what the plan does not need is waiting.
struct CyclePhase {
  std::string_view name;
  int64_t cycles = 0;
};

std::vector<CyclePhase> cycle_phases(const Simulation& simulation);

/// Accesses of a run, and their energy by a table.
struct EnergyTerm {
  std::string_view name;
  double count = 0;       // operations, or bits moved
  double picojoules = 0;  // in all
};

/// Energies of one operation or bit; an estimate for comparing terms, not a sign-off.
std::vector<SourcedNumber> energy_table();
std::vector<EnergyTerm> energy_of(const Simulation& simulation);

/// The roofline: what the array and the memory each allow.
struct Roofline {
  double flops_per_byte = 0;       // of the useful operations and the bytes that moved
  double compute_utilisation = 1;  // bound by the array: 1
  double memory_utilisation = 0;  // bound by the memory's bandwidth, as a share of the array's peak
  double ridge = 0;               // flops per byte where both meet
};

Roofline roofline_of(const Simulation& simulation);

}  // namespace flashloom::systolic
