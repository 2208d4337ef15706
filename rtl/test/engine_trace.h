#pragma once

// What a run of the verilated accelerator leaves behind, and how it is to be run.

#include <cstdint>
#include <map>
#include <string_view>
#include <vector>

#include "flashloom/systolic/array/register_array.h"
#include "rtl/test/axi_memory.h"

namespace flashloom::rtl {

/// A run, cycle by cycle. Cycle 0 is the first after the start.
struct EngineTrace {
  /// In the simulator's order, at the cycle's start; empty where they were not kept.
  std::vector<std::vector<uint32_t>> registers;
  std::vector<systolic::AccumulatorWrite> writes;
  std::vector<int64_t> accepted;  // cycle of each instruction word
  std::vector<int64_t> issues;    // of each matrix instruction
  std::vector<int64_t> load_starts;
  std::vector<int64_t> load_finishes;
  std::vector<int64_t> store_starts;
  std::vector<int64_t> store_finishes;
  int64_t cycles = 0;  // until the stop
  int64_t held = 0;    // cycles in which memory waited for the engine, of all ports
  std::map<std::string_view, uint32_t> control;  // the control registers at the end, by name
};

struct BenchOptions {
  AxiTiming memory;
  double host_stall_chance = 0;  // of each handshake on the control port
  bool fetch = false;            // the words are fetched from memory, not pushed
  int words_before_start = 0;    // pushed ones
  uint32_t watchdog = 0;
  int64_t cycle_limit = 1 << 20;
  int register_period = 1;  // registers are kept in every so many cycles; 0: never
};

/// How the array is cut into modules; 0: one block.
struct ArrayBlocks {
  int rows = 0;
  int columns = 0;
};

}  // namespace flashloom::rtl
