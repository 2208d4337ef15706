#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "flashloom/systolic/isa/isa.h"
#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/memory/memory_timing.h"

namespace flashloom::systolic {

/// What happens when: the engine's whole behaviour but for the values, which never change a cycle.
/// Both tiers of the array take it as input; so does a comparison with the RTL, which may bring
/// cycles of its own.

struct MatrixIssue {
  int instruction = 0;
  int slot = 0;
  int64_t cycle = 0;

  int64_t start() const { return cycle + 1; }  // timer 0

  bool operator==(const MatrixIssue&) const = default;
};

struct DmaTransfer {
  int instruction = 0;
  int64_t acquired = 0;
  int64_t finished = 0;      // its semaphore is written at the end of this cycle
  size_t first_request = 0;  // into Schedule::requests, a row each, if they were kept
  int request_count = 0;
};

/// Why no matrix instruction issued in a cycle.
enum class IssueState : uint8_t {
  issued,
  array,           // the plan: a slot or the previous instruction is not yet free
  drain,           // it waits for every earlier instruction to end
  no_instruction,  // the queue is empty: the host or the decoder is too slow, or the program is
                   // over
  waits_query,     // for a semaphore: Q is not loaded
  waits_key,
  waits_value,   // V is not loaded
  waits_output,  // the output tile is not yet stored
  waits_other,
};
inline constexpr int kIssueStateCount = 9;
std::string_view issue_state_name(IssueState state);

/// The order in which values change: a load when it has finished, a store when it starts, a matrix
/// instruction when it issues. Semaphores make this order equivalent to the interleaving of rows.
struct ValueEvent {
  enum class Kind : uint8_t { matrix, load, store };

  Kind kind;
  int instruction;
};

struct Schedule {
  std::vector<Instruction> program;
  std::vector<MatrixIssue> issues;
  std::vector<DmaTransfer> transfers;
  std::vector<MemoryRequest> requests;  // if kept
  std::vector<ValueEvent> events;
  int64_t cycles = 0;         // from the first decoded word to the end of the stopping fence
  int64_t matrix_active = 0;  // cycles with a busy slot
  int64_t dma_active = 0;     // cycles with a transfer under way
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  std::array<int64_t, kIssueStateCount> issue_cycles = {};
};

}  // namespace flashloom::systolic
