#pragma once

// Random programs and memory images for the lockstep tests.

#include <cstdint>
#include <random>
#include <vector>

#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/memory/main_memory.h"

namespace flashloom::rtl {

struct RandomProgram {
  systolic::MachineConfig config;
  std::vector<uint32_t> words;
  systolic::MainMemory memory{0};
};

/// FlashAttention over a random problem, with waits and fences strewn in.
RandomProgram random_attention(const systolic::MachineConfig& config, std::mt19937_64& random);

/// Matrix instructions in any order over any rows, with any flags, after one load of all the
/// scratchpad and before one store of all sums. Those that the plan does not overlap wait for each
/// other.
RandomProgram random_instructions(const systolic::MachineConfig& config, std::mt19937_64& random);

}  // namespace flashloom::rtl
