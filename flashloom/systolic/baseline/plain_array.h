#pragma once

#include <cstdint>

#include "flashloom/systolic/program/attention_problem.h"

namespace flashloom::systolic {

/// What the fused array is compared with: a plain weight-stationary array of the same size that
/// multiplies matrices, and a vector unit that does the softmax, on the same main memory.
struct PlainArray {
  /// Numbers that the vector unit handles a cycle. Its passes over a tile are those of an online
  /// softmax: maximum, exponential with its sum, rescaling of the output.
  int vector_lanes = 128;
  double softmax_passes = 2;
  double output_passes = 1;
  /// The array multiplies the next tile's scores while the vector unit works on this one's.
  bool overlapped = true;
};

struct PlainArrayRun {
  int64_t cycles = 0;
  int64_t array_busy = 0;  // M + 3N - 1 a product of M rows
  int64_t vector_busy = 0;
  int64_t memory_waits = 0;  // cycles in which the array waited for K or V alone
  double utilisation = 0;    // as of the fused array: useful multiply-adds over cycles · N²
};

/// In cycles, tile by tile, K and V double-buffered, rows served as MemoryTiming serves the fused
/// array's.
PlainArrayRun run_plain_array(const MachineConfig& config, const AttentionProblem& problem,
                              const PlainArray& plain);

}  // namespace flashloom::systolic
