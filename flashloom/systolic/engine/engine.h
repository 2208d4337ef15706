#pragma once

#include <cstdint>
#include <span>

#include "flashloom/core/function_ref.h"
#include "flashloom/systolic/engine/schedule.h"

namespace flashloom::systolic {

struct EngineOptions {
  int64_t memory_bytes = 0;    // size of main memory; addresses beyond are errors
  bool keep_requests = false;  // Schedule::requests
  int64_t cycle_limit = int64_t{1} << 50;
  /// Called now and then with the words decoded so far.
  FunctionRef<void(int64_t words)>* progress = nullptr;
};

/// Runs a program's control: decoder (a word a cycle, in order), queues, semaphores, the issue rule
/// and the memory's time. Throws InvalidArgument naming instruction and cycle for illegal
/// instructions, addresses outside memories, semaphores that are never released, and for a
/// deadlock, with what each engine waits for.
Schedule run_engine(const MachineConfig& config, std::span<const uint32_t> words,
                    const EngineOptions& options);

}  // namespace flashloom::systolic
