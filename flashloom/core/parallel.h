#pragma once

#include <cstdint>

#include "flashloom/core/function_ref.h"

namespace flashloom {

/// Threads that parallel loops of this thread will use.
int thread_count();

/// Sets it; 0 means all cores this process may run on. Results never depend on it.
void set_thread_count(int count);

/// Runs body(i) for every i in [0, count), each once, on any thread in any order. The caller cuts
/// work into tiles that do not depend on the number of threads, so results do not either. The first
/// exception is rethrown here. Loops inside a body run on the body's own thread.
void parallel_for(int64_t count, FunctionRef<void(int64_t index)> body);

/// The same with the number of the thread, in [0, thread_count()), for scratch memory.
void parallel_for_workers(int64_t count, FunctionRef<void(int64_t index, int worker)> body);

/// Tiles of at most `tile` that cover `size`.
constexpr int64_t tile_count(int64_t size, int64_t tile) {
  return (size + tile - 1) / tile;
}

}  // namespace flashloom
