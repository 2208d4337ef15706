#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "flashloom/core/function_ref.h"
#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/program/attention_data.h"
#include "flashloom/systolic/program/attention_problem.h"

namespace flashloom::systolic {

struct SimulationOptions {
  Distribution distribution = Distribution::outliers;
  uint64_t seed = 1;
  bool values = true;      // else cycles alone
  int checked_rows = 256;  // of the output, drawn by the seed, against float64
  bool keep_requests = false;
  std::vector<uint32_t> program;  // empty: flash_attention()'s; else words for the same memory
  /// Stage and its share done, now and then.
  FunctionRef<void(std::string_view stage, double share)>* progress = nullptr;
};

struct SimulationErrors {
  int64_t rows = 0;  // 0: not checked
  double largest = 0;
  double mean = 0;
  double root_mean_square = 0;
  int64_t not_numbers = 0;  // outputs that are NaN where float64's is not; not in the above
};

/// One attention run on a machine.
struct Simulation {
  MachineConfig config;
  AttentionProblem problem;
  AttentionTiling tiling;
  Schedule schedule;
  SimulationErrors errors;
  double engine_seconds = 0;
  double value_seconds = 0;

  int64_t issued_tiles() const;
  /// Steady cycles of an inner iteration, by the plan.
  int period() const;
  /// Pairs of a query and a key that it sees, over all heads.
  double visible_pairs() const;
  /// 2 pairs (D + D_v): the operations that were asked for.
  double useful_flops() const;
  /// Multiply-adds of the array at full rate in all cycles.
  double peak_flops() const;

  double utilisation() const { return useful_flops() / peak_flops(); }

  /// The same for all pairs of the tiles that ran: what masks and tails waste is the difference.
  double issued_utilisation() const;
  double bytes_per_cycle() const;
  /// PE-cycles simulated a second, values included.
  double pe_cycles_per_second() const;
};

Simulation simulate(const MachineConfig& config, const AttentionProblem& problem,
                    const SimulationOptions& options = {});

}  // namespace flashloom::systolic
