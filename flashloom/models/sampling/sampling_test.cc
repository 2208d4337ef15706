#include "flashloom/models/sampling/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

std::vector<double> frequencies(const std::vector<float>& logits, const SamplingOptions& options) {
  RandomSequence random(11, RandomStream::sampling);
  std::vector<int32_t> scratch;
  std::vector<double> counts(logits.size());
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const ConstTensorView view(logits.data(), {static_cast<int64_t>(logits.size())});
    counts[static_cast<size_t>(sample_token(view, options, random, scratch))] += 1.0 / kDraws;
  }
  return counts;
}

TEST(Sampling, FollowsTheSoftmaxAtATemperature) {
  const std::vector<float> logits = {0.0f, 1.0f, -1.0f, 2.0f};
  const double temperature = 0.7;
  double total = 0;
  for (const float z : logits) {
    total += std::exp(z / temperature);
  }
  const auto seen = frequencies(logits, {.temperature = temperature});
  for (size_t i = 0; i < logits.size(); ++i) {
    EXPECT_NEAR(seen[i], std::exp(logits[i] / temperature) / total, 0.015);
  }
}

TEST(Sampling, ZeroTemperatureTakesTheFirstMaximum) {
  EXPECT_NEAR(frequencies({1.0f, 3.0f, 3.0f}, {.temperature = 0})[1], 1.0, 1e-9);
}

TEST(Sampling, TopKAndTopPCutTheTail) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.1f), std::log(0.3f),
                                     std::log(0.1f)};
  const auto two = frequencies(logits, {.top_k = 2});
  EXPECT_EQ(two[1] + two[3], 0.0);
  EXPECT_NEAR(two[0], 0.625, 0.015);
  const auto nucleus = frequencies(logits, {.top_p = 0.75});  // 0.5 + 0.3 reach it
  EXPECT_EQ(nucleus[1] + nucleus[3], 0.0);
  EXPECT_NEAR(nucleus[2], 0.375, 0.015);
}

TEST(Sampling, RejectsImpossibleOptionsAndLogits) {
  const std::vector<float> bad = {1.0f, std::numeric_limits<float>::quiet_NaN()};
  const std::vector<float> good = {1.0f, 2.0f};
  EXPECT_THROW(frequencies(bad, {}), InvalidArgument);
  EXPECT_THROW(frequencies(good, {.temperature = -1}), InvalidArgument);
  EXPECT_THROW(frequencies(good, {.top_p = 0}), InvalidArgument);
  EXPECT_THROW(frequencies(good, {.top_k = -1}), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
