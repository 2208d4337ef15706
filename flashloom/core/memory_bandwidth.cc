#include "flashloom/core/memory_bandwidth.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"

namespace flashloom {

double measure_copy_bytes_per_second(int64_t working_set) {
  constexpr int64_t kTile = int64_t{1} << 16;  // fits the second-level cache of every current core
  constexpr int kRounds = 40;
  constexpr double kSecondsPerRound = 0.001;
  using Clock = std::chrono::steady_clock;
  const int64_t size = working_set / 2;
  if (size <= 0) {
    throw InvalidArgument("measure_copy_bytes_per_second", "working_set", "2 bytes or more",
                          fmt::format("{}", working_set));
  }
  std::vector<std::byte> source(static_cast<size_t>(size), std::byte{1});
  std::vector<std::byte> target(static_cast<size_t>(size));
  const auto copy = [&] {
    parallel_for(tile_count(size, kTile), [&](int64_t i) {
      const int64_t first = i * kTile;
      std::memcpy(target.data() + first, source.data() + first,
                  static_cast<size_t>(std::min(kTile, size - first)));
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
    best = std::max(best, static_cast<double>(2 * size * copies) / seconds);
  }
  return best;
}

}  // namespace flashloom
