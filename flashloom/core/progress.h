#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace flashloom {

/// How far a job is and how long it will still take. Holds no terminal: the program prints line().
class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  /// `total` units of work, of which `done` were done before (a resumed run).
  explicit Progress(int64_t total, int64_t done = 0, Clock::time_point now = Clock::now());

  void advance(int64_t done, Clock::time_point now = Clock::now());

  double elapsed_seconds() const;
  /// From the rate of the last quarter of the work, so that slow starts do not mislead; negative
  /// while nothing is known.
  double remaining_seconds() const;
  /// "12/60 · 0:48 · 3:12 left"
  std::string line() const;

 private:
  struct Mark {
    int64_t done;
    Clock::time_point time;
  };

  int64_t total_;
  Mark start_;
  Mark middle_;  // a point behind which the rate is measured, moved along
  Mark recent_;
  Mark now_;
};

/// "0:48", "1:02:03"
std::string format_duration(double seconds);

/// "123 B", "4.5 MB" (powers of 1000)
std::string format_bytes(int64_t bytes);

/// "8GB", "512 MiB", "1.5e9", "700": kB, MB, GB, TB are powers of 1000, KiB … TiB of 1024. Throws
/// InvalidArgument for anything else, or less than one byte.
int64_t parse_bytes(std::string_view text);

}  // namespace flashloom
