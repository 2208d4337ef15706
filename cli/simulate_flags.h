#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "cli/arguments.h"
#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/program/attention_problem.h"

namespace flashloom::cli {

/// The flags of `flashloom simulate` that make a machine and a problem. A flag for every parameter
/// of systolic::machine_keys().
struct SimulateFlags {
  std::string preset = "paper";
  std::string array;  // "128" or "64x128"
  int64_t sequence = 2048;
  int64_t keys = 0;
  int64_t heads = 1;
  int64_t key_heads = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  bool causal = false;

  using Holder =
      std::variant<bool, std::optional<int64_t>, std::optional<double>, std::optional<std::string>>;
  std::deque<Holder> parameters;  // of machine_keys(), in order; addresses must last

  SimulateFlags();

  std::vector<Flag> flags();
  systolic::MachineConfig machine() const;
  systolic::AttentionProblem problem() const;
};

/// Machine dimensions "128" or "RxC".
void set_array(systolic::MachineConfig& config, const std::string& text);

}  // namespace flashloom::cli
