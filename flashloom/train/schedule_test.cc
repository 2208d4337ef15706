#include "flashloom/train/schedule.h"

#include <gtest/gtest.h>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

TEST(CosineSchedule, RisesThenFallsToZero) {
  EXPECT_DOUBLE_EQ(cosine_schedule(0, 60, 0), 1.0);
  EXPECT_DOUBLE_EQ(cosine_schedule(0, 60, 6), 1.0 / 6);
  EXPECT_NEAR(cosine_schedule(30, 60, 6), 0.5, 1e-12);
  EXPECT_NEAR(cosine_schedule(60, 60, 6), 0.0, 1e-12);
  EXPECT_GT(cosine_schedule(59, 60, 6), 0.0);
  for (int step = 6; step < 60; ++step) {
    EXPECT_GT(cosine_schedule(step, 60, 6), cosine_schedule(step + 1, 60, 6));
  }
}

TEST(CosineSchedule, RejectsImpossibleSteps) {
  EXPECT_THROW(cosine_schedule(0, 0, 0), InvalidArgument);
  EXPECT_THROW(cosine_schedule(61, 60, 0), InvalidArgument);
  EXPECT_THROW(cosine_schedule(0, 60, -1), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
