#pragma once

#include <algorithm>
#include <vector>

#include "flashloom/systolic/array/collapsed_run.h"
#include "flashloom/systolic/array/reference_run.h"
#include "flashloom/systolic/engine/engine.h"
#include "flashloom/systolic/program/attention_data.h"
#include "flashloom/systolic/program/flash_attention.h"

namespace flashloom::systolic {

inline MachineConfig small_machine(int rows, int columns, int pieces = 8) {
  MachineConfig config{.shape = {.rows = rows, .columns = columns, .pieces = pieces}};
  return config;
}

/// A problem with its program, data and schedule, ready to be played by either tier.
struct AttentionCase {
  AttentionCase(const MachineConfig& machine, const AttentionProblem& given,
                Distribution distribution = Distribution::normal, uint64_t seed = 1)
      : problem(checked_problem(machine, given)),
        config(machine_for(machine, problem)),
        data(random_inputs(config, problem, distribution, seed)),
        memory_bytes(layout_of(config, problem).bytes),
        words(flash_attention(config, problem).words()),
        schedule(run_engine(config, words, {.memory_bytes = memory_bytes, .keep_requests = true})) {
  }

  MachineState fresh() const {
    MachineState state(config, memory_bytes);
    place_inputs(config, problem, data, state.memory);
    return state;
  }

  MachineState reference() const {
    MachineState state = fresh();
    run_reference(config, schedule, state, [](const ObservedCycle&) {});
    return state;
  }

  MachineState collapsed(bool soft = false) const {
    MachineState state = fresh();
    run_collapsed(config, schedule, state, {.soft = soft});
    return state;
  }

  AttentionProblem problem;
  MachineConfig config;
  AttentionData data;
  int64_t memory_bytes;
  std::vector<uint32_t> words;
  Schedule schedule;
};

/// The numbers of two memories, for comparisons that say where they differ.
inline bool same_memory(const MachineState& a, const MachineState& b) {
  const auto x = a.memory.bytes();
  const auto y = b.memory.bytes();
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

}  // namespace flashloom::systolic
