#include "flashloom/train/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "flashloom/core/check.h"

namespace flashloom {

double cosine_schedule(int64_t step, int64_t steps, int64_t warmup) {
  check(steps >= 1, "cosine_schedule", "steps", "at least 1", fmt::format("{}", steps));
  check(warmup >= 0, "cosine_schedule", "warmup", "at least 0", fmt::format("{}", warmup));
  check(step >= 0 && step <= steps, "cosine_schedule", "step", fmt::format("0 to {}", steps),
        fmt::format("{}", step));
  const double rise =
      warmup == 0 ? 1.0
                  : std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(warmup));
  const double fall = 0.5 + 0.5 * std::cos(std::numbers::pi * static_cast<double>(step) /
                                           static_cast<double>(steps));
  return rise * fall;
}

}  // namespace flashloom
