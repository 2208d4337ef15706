#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/systolic/program/attention_problem.h"
#include "flashloom/systolic/program/tile_program.h"

namespace flashloom::systolic {

/// The machine with the softmax scale of the problem, 1 / sqrt(head_dim), where it names none, and
/// with room for outputs whose value dimension is above the rows, where it names no number of rows.
MachineConfig machine_for(MachineConfig config, const AttentionProblem& problem);

/// FlashAttention as a program over layout_of()'s memory. In `compat` no semaphore guards the
/// output tile, as published. With room for two outputs (accumulator_rows_for() less one, twice)
/// they take turns, so that nobody waits for a store. With a shadow register queries load once a
/// block, while the block before still computes.
TileProgram flash_attention(const MachineConfig& config, const AttentionProblem& problem);

}  // namespace flashloom::systolic
