#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/systolic/program/attention_problem.h"
#include "flashloom/systolic/program/tile_program.h"

namespace flashloom::systolic {

/// The machine with the softmax scale of the problem, 1 / sqrt(head_dim), where it names none.
MachineConfig machine_for(MachineConfig config, const AttentionProblem& problem);

/// FlashAttention as a program over layout_of()'s memory. In `compat` no semaphore guards the
/// output tile, as published.
TileProgram flash_attention(const MachineConfig& config, const AttentionProblem& problem);

}  // namespace flashloom::systolic
