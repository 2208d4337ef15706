#include "flashloom/train/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "flashloom/core/check.h"

namespace flashloom {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"cosine", "linear", "wsd", "constant"};

double fall_of(const ScheduleOptions& options, double step, double steps) {
  switch (options.kind) {
    case ScheduleKind::cosine:
      return 0.5 + 0.5 * std::cos(std::numbers::pi * step / steps);
    case ScheduleKind::linear:
      return 1 - step / steps;
    case ScheduleKind::wsd:
      return std::min(1.0, (steps - step) / std::max(1.0, std::round(options.decay * steps)));
    case ScheduleKind::constant:
      break;
  }
  return 1;
}

}  // namespace

ScheduleKind parse_schedule(std::string_view name) {
  const auto* const found = std::find(kNames.begin(), kNames.end(), name);
  check(found != kNames.end(), "parse_schedule", "name", "cosine, linear, wsd or constant",
        fmt::format("\"{}\"", name));
  return static_cast<ScheduleKind>(found - kNames.begin());
}

std::string_view schedule_name(ScheduleKind kind) {
  return kNames[static_cast<size_t>(kind)];
}

double schedule_factor(const ScheduleOptions& options, int64_t step, int64_t steps) {
  constexpr std::string_view kOp = "schedule_factor";
  const auto share = [&](std::string_view name, double value) {
    check(value >= 0 && value <= 1, kOp, name, "0 to 1", fmt::format("{}", value));
  };
  check(steps >= 1, kOp, "steps", "at least 1", fmt::format("{}", steps));
  check(options.warmup >= 0, kOp, "warmup", "at least 0", fmt::format("{}", options.warmup));
  check(step >= 0 && step <= steps, kOp, "step", fmt::format("0 to {}", steps),
        fmt::format("{}", step));
  share("minimum", options.minimum);
  share("decay", options.decay);
  const double rise =
      options.warmup == 0
          ? 1.0
          : std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(options.warmup));
  const double fall = fall_of(options, static_cast<double>(step), static_cast<double>(steps));
  return rise * (options.minimum + (1 - options.minimum) * fall);
}

}  // namespace flashloom
