#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear_cross_entropy/head_for_test.h"

namespace flashloom {
namespace {

// Weights large enough that probabilities spread over many orders of magnitude.
Head<float> peaked_head(int64_t tokens, int64_t channels, int64_t vocabulary) {
  Head<float> head(tokens, channels, vocabulary);
  for (float& weight : head.weight.memory) {
    weight *= 4;
  }
  return head;
}

TEST(LinearCrossEntropyFilter, AFilteredGradientEqualsTheReference) {
  constexpr float kFilter = 0x1p-12f;
  for (const LinearCrossEntropyOptions& options :
       {LinearCrossEntropyOptions{.filter = kFilter},
        LinearCrossEntropyOptions{.filter = kFilter, .filter_weight_gradient = true},
        LinearCrossEntropyOptions{.gradient_scale = 0.5f,
                                  .z_loss = 0.1f,
                                  .softcap = 20,
                                  .filter = kFilter,
                                  .filter_weight_gradient = true}}) {
    // Several chunks, slices and a last tile that is not whole.
    Head<float> actual = peaked_head(1100, 8, 9000);
    Head<float> frozen(actual);
    Head<float> expected(actual);
    Head<float> exact(actual);
    actual.run(options);
    frozen.run(options, true, false);
    expected.run_reference(options);
    LinearCrossEntropyOptions without = options;
    without.filter = 0;
    without.filter_weight_gradient = false;
    exact.run(without);
    // Logits within 32: 1e-4 of rounding in dz, and an entry whose probability is the filter's but
    // for rounding may fall on either side: 2^-12 times a weight of 4. Some rows lose far more than
    // that to the filter.
    constexpr double kBound = 0x1p-12 * 4 * 1.5;
    EXPECT_EQ(frozen.dhidden.memory, actual.dhidden.memory);
    double filtered = 0;
    double weight_filtered = 0;
    for (size_t i = 0; i < actual.dhidden.memory.size(); ++i) {
      ASSERT_NEAR(actual.dhidden.memory[i], expected.dhidden.memory[i], kBound);
      filtered =
          std::max<double>(filtered, std::fabs(actual.dhidden.memory[i] - exact.dhidden.memory[i]));
    }
    EXPECT_GT(filtered, 10 * kBound);
    for (size_t i = 0; i < actual.dweight.memory.size(); ++i) {
      // A column sums hundreds of rows, of which one or two may stand on the edge.
      ASSERT_NEAR(actual.dweight.memory[i], expected.dweight.memory[i], 2 * 0x1p-12 + 1e-4);
      weight_filtered = std::max<double>(
          weight_filtered, std::fabs(actual.dweight.memory[i] - exact.dweight.memory[i]));
    }
    if (options.filter_weight_gradient) {
      EXPECT_GT(weight_filtered, 4 * 0x1p-12);
    } else {
      EXPECT_EQ(actual.dweight.memory, exact.dweight.memory);  // never, unless asked
    }
    expect_near(actual.loss, expected.loss, 1e-3);
  }
}

TEST(LinearCrossEntropyFilter, AFilterBelowEveryProbabilityChangesNothing) {
  Head<float> exact(40, 8, 700);  // probabilities above e^-16 / 700
  Head<float> filtered(exact);
  exact.run();
  filtered.run({.filter = 1e-12f, .filter_weight_gradient = true});
  expect_near(filtered.dhidden, exact.dhidden, 1e-5);
  expect_near(filtered.dweight, exact.dweight, 1e-5);
  EXPECT_EQ(filtered.loss.memory, exact.loss.memory);
}

TEST(LinearCrossEntropyFilter, TheFilterKeepsTheLabel) {
  // 900 equal probabilities below 1 / 512: only the label's gradient is left.
  Head<float> head(1, 2, 900);
  head.hidden.memory[0] = 0;
  head.hidden.memory[1] = 0;
  head.labels[0] = 777;
  head.run({.filter = 1.0f / 512}, true, false);
  for (size_t c = 0; c < 2; ++c) {
    EXPECT_NEAR(head.dhidden.memory[c], head.weight.memory[777 * 2 + c] * (1.0 / 900 - 1), 1e-6);
  }
}

TEST(LinearCrossEntropyFilter, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto run = [](int threads) {
    Head<float> head = peaked_head(700, 24, 9000);
    set_thread_count(threads);
    head.run({.filter = 0x1p-12f, .filter_weight_gradient = true});
    set_thread_count(0);
    return std::vector{head.loss.memory, head.dhidden.memory, head.dweight.memory};
  };
  const auto one = run(1);
  for (const int threads : {2, 5}) {
    EXPECT_EQ(run(threads), one) << threads;
  }
}

TEST(LinearCrossEntropyFilter, ANumberThatIsNotFiniteMakesItsRowNan) {
  for (const float bad : {kNan, kInfinity}) {
    Head<float> head(6, 4, 600);
    head.hidden.memory[0] = bad;
    head.run({.filter = 0x1p-12f}, true, false);
    EXPECT_TRUE(std::isnan(head.loss.memory[0])) << bad;
    EXPECT_TRUE(std::isnan(head.dhidden.memory[0])) << bad;
    EXPECT_TRUE(std::isfinite(head.dhidden.memory[2 * 4]));
  }
}

TEST(LinearCrossEntropyFilter, RejectsBadArguments) {
  Head<float> head(6, 8, 30);
  EXPECT_THROW(head.run({.filter = -0.1f}), InvalidArgument);
  EXPECT_THROW(head.run({.filter = 1}), InvalidArgument);
  EXPECT_THROW(head.run({.filter = kNan}), InvalidArgument);
  EXPECT_THROW(head.run({.label_smoothing = 0.1f, .filter = 0.001f}), InvalidArgument);
  EXPECT_THROW(head.run({.filter_weight_gradient = true}), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
