#include "flashloom/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

double factor(ScheduleKind kind, int64_t step, int64_t steps, int64_t warmup = 0,
              double minimum = 0) {
  return schedule_factor({.kind = kind, .warmup = warmup, .minimum = minimum}, step, steps);
}

TEST(Schedule, CosineRisesThenFallsToZero) {
  const auto cosine = [](int64_t step, int64_t warmup) {
    return factor(ScheduleKind::cosine, step, 60, warmup);
  };
  EXPECT_DOUBLE_EQ(cosine(0, 0), 1.0);
  EXPECT_DOUBLE_EQ(cosine(0, 6), 1.0 / 6);
  EXPECT_NEAR(cosine(30, 6), 0.5, 1e-12);
  EXPECT_NEAR(cosine(60, 6), 0.0, 1e-12);
  EXPECT_GT(cosine(59, 6), 0.0);
  for (int step = 6; step < 60; ++step) {
    EXPECT_GT(cosine(step, 6), cosine(step + 1, 6));
  }
}

TEST(Schedule, FollowsItsFormula) {
  for (int64_t step = 0; step <= 50; ++step) {
    const double s = static_cast<double>(step);
    const double rise = std::min(1.0, (s + 1) / 4);
    const auto expect = [&](ScheduleKind kind, double fall) {
      EXPECT_NEAR(factor(kind, step, 50, 4, 0.1), rise * (0.1 + 0.9 * fall), 1e-15)
          << schedule_name(kind) << " step " << step;
    };
    expect(ScheduleKind::cosine, (1 + std::cos(std::numbers::pi * s / 50)) / 2);
    expect(ScheduleKind::linear, 1 - s / 50);
    expect(ScheduleKind::wsd, step < 40 ? 1 : (50 - s) / 10);
    expect(ScheduleKind::constant, 1);
  }
}

TEST(Schedule, WsdFallsOverItsShareOfTheSteps) {
  const auto wsd = [](int64_t step, double decay) {
    return schedule_factor({.kind = ScheduleKind::wsd, .decay = decay}, step, 10);
  };
  EXPECT_DOUBLE_EQ(wsd(5, 0.5), 1);
  EXPECT_DOUBLE_EQ(wsd(9, 0.5), 0.2);
  EXPECT_DOUBLE_EQ(wsd(9, 0), 1);  // no fall before the end
  EXPECT_DOUBLE_EQ(wsd(5, 1), 0.5);
}

TEST(Schedule, HasNames) {
  for (const char* name : {"cosine", "linear", "wsd", "constant"}) {
    EXPECT_EQ(schedule_name(parse_schedule(name)), name);
  }
  EXPECT_THROW(parse_schedule("Cosine"), InvalidArgument);
}

TEST(Schedule, RejectsImpossibleArguments) {
  EXPECT_THROW(schedule_factor({}, 0, 0), InvalidArgument);
  EXPECT_THROW(schedule_factor({}, 61, 60), InvalidArgument);
  EXPECT_THROW(schedule_factor({.warmup = -1}, 0, 60), InvalidArgument);
  EXPECT_THROW(schedule_factor({.minimum = 1.5}, 0, 60), InvalidArgument);
  EXPECT_THROW(schedule_factor({.decay = std::nan("")}, 0, 60), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
