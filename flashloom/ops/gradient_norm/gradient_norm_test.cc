#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/gradient_norm/gradient_norm_reference.h"

namespace flashloom {
namespace {

TEST(SumOfSquares, EqualsTheReference) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t count : {0, 1, 5, 16, 1000, 32768, 100001}) {
      const OwnedTensor x = normal_tensor(dtype, {count}, 1);
      const double exact = sum_of_squares_reference(x);
      // Positive terms: at most one rounding of f64 for each on both sides.
      EXPECT_NEAR(sum_of_squares(x), exact, 2 * static_cast<double>(count) * 0x1p-53 * exact);
    }
  }
}

TEST(SumOfSquares, AddsSmallNumbersToLargeOnesWithoutLosingThem) {
  OwnedTensor x(DType::f32, {100, 100});
  x.fill(1e-3);
  x.set({50, 50}, 1e4);
  const double small = static_cast<double>(1e-3f);
  EXPECT_NEAR(sum_of_squares(x) - 1e8, 9999 * small * small, 1e-6);
}

TEST(SumOfSquares, SurvivesNumbersWhoseSquaresLeaveF32) {
  OwnedTensor x(DType::f32, {100});
  x.fill(1e30);
  EXPECT_NEAR(sum_of_squares(x) / 1e62, 1, 1e-6);
}

TEST(SumOfSquares, PassesNaNAndInfinity) {
  for (const int64_t place : {2, 98}) {  // in a vector, in the tail
    OwnedTensor x = normal_tensor(DType::f32, {99}, 1);
    x.set({place}, std::nan(""));
    EXPECT_TRUE(std::isnan(sum_of_squares(x)));
    x.set({place}, -std::numeric_limits<double>::infinity());
    EXPECT_EQ(sum_of_squares(x), std::numeric_limits<double>::infinity());
  }
}

TEST(SumOfSquares, GivesTheSameBitsForAnyNumberOfThreads) {
  const OwnedTensor x = normal_tensor(DType::f32, {200001}, 1);
  set_thread_count(1);
  const double one = sum_of_squares(x);
  set_thread_count(5);
  const double five = sum_of_squares(x);
  set_thread_count(0);
  EXPECT_EQ(std::bit_cast<uint64_t>(one), std::bit_cast<uint64_t>(five));
}

TEST(SumOfSquares, CoversTensorsOfMoreThan256SmallestTiles) {
  const int64_t count = 256 * 32768 + 5;
  OwnedTensor x(DType::bf16, {count});
  x.set({0}, 1);
  x.set({count / 2}, 2);
  x.set({count - 1}, 3);
  EXPECT_EQ(sum_of_squares(x), 14);
}

TEST(SumOfSquares, RejectsBadArguments) {
  EXPECT_THROW(sum_of_squares({}), InvalidArgument);
  EXPECT_THROW(sum_of_squares(OwnedTensor(DType::f64, {4})), InvalidArgument);
  EXPECT_THROW(sum_of_squares(OwnedTensor(DType::f32, {4, 4}, 1)), InvalidArgument);
}

TEST(ClipFactor, BringsANormDownToTheLimitAndNeverUp) {
  EXPECT_FLOAT_EQ(clip_factor(10, 1), 0.1f);
  EXPECT_EQ(clip_factor(0.5, 1), 1.0f);
  EXPECT_EQ(clip_factor(0, 1), 1.0f);
  EXPECT_EQ(clip_factor(1e9, 0), 1.0f);
  EXPECT_EQ(clip_factor(INFINITY, 1), 0.0f);
  EXPECT_TRUE(std::isnan(clip_factor(std::nan(""), 1)));
  EXPECT_THROW(clip_factor(1, -1), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
