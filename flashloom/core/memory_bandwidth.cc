#include "flashloom/core/memory_bandwidth.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"

namespace flashloom {

namespace {

// A loop of ours, in the widest vectors of the machine. glibc's memcpy reached 4 GB/s instead of 70
// for some pairs of addresses on Zen 3 (`rep movsb`), 16-byte vectors 23. The addition keeps the
// compiler from calling memcpy here.
#if defined(__x86_64__) && defined(__GLIBC__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void copy_numbers(uint64_t* __restrict to, const uint64_t* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = from[i] + 1;
  }
}

}  // namespace

double measure_copy_bytes_per_second(int64_t working_set) {
  constexpr int64_t kTile = 8192;  // numbers: 64 KB fit the second-level cache of current cores
  constexpr int kRounds = 40;
  constexpr double kSecondsPerRound = 0.001;
  using Clock = std::chrono::steady_clock;
  const int64_t size = working_set / 2 / static_cast<int64_t>(sizeof(uint64_t));
  if (size <= 0) {
    throw InvalidArgument("measure_copy_bytes_per_second", "working_set", "16 bytes or more",
                          fmt::format("{}", working_set));
  }
  std::vector<uint64_t> source(static_cast<size_t>(size), 1);
  std::vector<uint64_t> target(static_cast<size_t>(size));
  const auto copy = [&] {
    parallel_for(tile_count(size, kTile), [&](int64_t tile) {
      const int64_t first = tile * kTile;
      copy_numbers(target.data() + first, source.data() + first, std::min(kTile, size - first));
    });
  };
  copy();
  double best = 0;  // a bound is the best that was seen, not what other work left over
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point start = Clock::now();
    double seconds = 0;
    int64_t copies = 0;
    do {
      copy();
      ++copies;
      seconds = std::chrono::duration<double>(Clock::now() - start).count();
    } while (seconds < kSecondsPerRound);
    best = std::max(best, static_cast<double>(16 * size * copies) / seconds);
  }
  return best;
}

}  // namespace flashloom
