#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <map>

#include "flashloom/core/memory_bandwidth.h"

namespace flashloom {

/// Adds to a benchmark how many bytes a second it moved, and the share of what copying a working
/// set of that size reaches on this machine with the same threads, measured in this program.
/// `bytes`: what one iteration must read and write at least.
inline void report_bytes(benchmark::State& state, int64_t bytes) {
  static std::map<int64_t, double> measured;
  if (!measured.contains(bytes)) {
    measured[bytes] = measure_copy_bytes_per_second(bytes);
  }
  const auto moved = static_cast<double>(bytes) * static_cast<double>(state.iterations());
  state.counters["bytes/s"] = benchmark::Counter(moved, benchmark::Counter::kIsRate);
  state.counters["of_copy"] =
      benchmark::Counter(moved / measured[bytes], benchmark::Counter::kIsRate);
}

}  // namespace flashloom
