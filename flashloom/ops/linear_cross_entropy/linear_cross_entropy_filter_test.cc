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

// The same, with 600 tokens that are likely everywhere, as some words of a language are.
Head<float> head_with_frequent_tokens(int64_t tokens, int64_t channels, int64_t vocabulary) {
  Head<float> head = peaked_head(tokens, channels, vocabulary);
  for (int64_t t = 0; t < tokens; ++t) {
    head.hidden.memory[static_cast<size_t>(t * channels)] = 1;
  }
  for (int64_t v = 0; v < vocabulary; ++v) {
    head.weight.memory[static_cast<size_t>(v * channels)] = v % 17 == 3 && v < 600 * 17 ? 5 : 0;
  }
  return head;
}

constexpr float kFilter = 0x1p-12f;

TEST(LinearCrossEntropyFilter, AFilteredGradientEqualsTheReference) {
  for (const LinearCrossEntropyOptions& options :
       {LinearCrossEntropyOptions{.filter = kFilter},
        LinearCrossEntropyOptions{.filter = kFilter, .filter_weight_gradient = true},
        LinearCrossEntropyOptions{
            .label_smoothing = 0.3f, .filter = kFilter, .filter_weight_gradient = true},
        LinearCrossEntropyOptions{
            .label_smoothing = 0.1f, .z_loss = 0.1f, .filter = kFilter, .sort_vocabulary = true},
        LinearCrossEntropyOptions{.gradient_scale = 0.5f,
                                  .z_loss = 0.1f,
                                  .softcap = 20,
                                  .filter = kFilter,
                                  .filter_weight_gradient = true,
                                  .sort_vocabulary = true}}) {
    SCOPED_TRACE(testing::Message() << options.label_smoothing << " " << options.softcap);
    // Several chunks, slices of two tiles and a last tile that is not whole.
    Head<float> actual = peaked_head(1100, 8, 11000);
    Head<float> frozen(actual);
    Head<float> expected(actual);
    Head<float> exact(actual);
    actual.run(options);
    frozen.run(options, true, false);
    expected.run_reference(options);
    LinearCrossEntropyOptions without = options;
    without.filter = 0;
    without.filter_weight_gradient = false;
    without.sort_vocabulary = false;
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

TEST(LinearCrossEntropyFilter, SortingTheVocabularyChangesTheOrderOfSumsAlone) {
  for (const LinearCrossEntropyOptions& options :
       {LinearCrossEntropyOptions{.filter = kFilter},
        LinearCrossEntropyOptions{.filter = kFilter, .filter_weight_gradient = true},
        LinearCrossEntropyOptions{
            .label_smoothing = 0.2f, .filter = kFilter, .filter_weight_gradient = true}}) {
    for (const bool with_dhidden : {true, false}) {
      if (!with_dhidden && !options.filter_weight_gradient) {
        continue;
      }
      Head<float> plain = head_with_frequent_tokens(900, 8, 11000);
      Head<float> sorted(plain);
      plain.run(options, with_dhidden, true);
      LinearCrossEntropyOptions with = options;
      with.sort_vocabulary = true;
      sorted.run(with, with_dhidden, true);
      EXPECT_EQ(sorted.loss.memory, plain.loss.memory);
      // At most 4,096 terms, probabilities that add up to 1 times weights of up to 5; of dweight
      // 600 rows. Dropping or doubling one entry would move a sum by 2^-12 or more.
      constexpr double kRounding = 0x1p-17;
      expect_near(sorted.dhidden, plain.dhidden, kRounding);
      expect_near(sorted.dweight, plain.dweight, 4 * kRounding);
      // There was something to sort.
      EXPECT_NE(with_dhidden ? sorted.dhidden.memory : sorted.dweight.memory,
                with_dhidden ? plain.dhidden.memory : plain.dweight.memory);
    }
  }
}

TEST(LinearCrossEntropyFilter, MoreFrequentTokensThanADenseProductTakesAreAllCounted) {
  // 3,000 tokens, each kept by every row: 2,048 of them in the product.
  Head<float> plain(40, 4, 3000);
  for (float& hidden : plain.hidden.memory) {
    hidden *= 0.1f;
  }
  Head<float> sorted(plain), exact(plain);
  plain.run({.filter = 1.0f / 8192, .filter_weight_gradient = true});
  sorted.run({.filter = 1.0f / 8192, .filter_weight_gradient = true, .sort_vocabulary = true});
  exact.run();
  for (const Head<float>* head : {&plain, &sorted}) {
    expect_near(head->dhidden, exact.dhidden, 1e-5);
    expect_near(head->dweight, exact.dweight, 1e-5);
  }
  EXPECT_NE(sorted.dhidden.memory, plain.dhidden.memory);
}

TEST(LinearCrossEntropyFilter, AnElementMovesByNoMoreThanTheTail) {
  for (const auto& [smoothing, z_loss] : {std::pair(0.0f, 0.0f), {0.1f, 0.0f}, {0.0f, 0.1f}}) {
    for (const bool sorted : {false, true}) {
      Head<float> exact = head_with_frequent_tokens(300, 8, 5000);
      Head<float> filtered(exact);
      exact.run({.label_smoothing = smoothing, .z_loss = z_loss});
      filtered.run({.label_smoothing = smoothing,
                    .z_loss = z_loss,
                    .filter = kFilter,
                    .sort_vocabulary = sorted});
      const TestMatrix<>& w = exact.weight;
      const double largest =
          std::fabs(*std::max_element(w.memory.begin(), w.memory.end(), [](float a, float b) {
            return std::fabs(a) < std::fabs(b);
          }));
      double least_share = 1;  // of a bound that is used
      for (int64_t t = 0; t < exact.tokens; ++t) {
        if (exact.labels[static_cast<size_t>(t)] == kIgnoredLabel) {
          continue;
        }
        std::vector<double> z(static_cast<size_t>(exact.vocabulary));
        double sum = 0;
        for (int64_t v = 0; v < exact.vocabulary; ++v) {
          double& logit = z[static_cast<size_t>(v)];
          for (int64_t c = 0; c < 8; ++c) {
            logit += static_cast<double>(exact.hidden.memory[static_cast<size_t>(t * 8 + c)]) *
                     static_cast<double>(w.memory[static_cast<size_t>(v * 8 + c)]);
          }
          sum += std::exp(logit);
        }
        double tail = 0;
        for (const double logit : z) {
          const double p = std::exp(logit) / sum;
          tail += p < kFilter * (1 + 1e-4) ? p : 0;
        }
        const double bound = (1 + 2 * z_loss * std::log(sum)) * tail * largest;
        double moved = 0;
        for (size_t c = 0; c < 8; ++c) {
          const auto at = static_cast<size_t>(t * 8) + c;
          moved = std::max<double>(
              moved, std::fabs(exact.dhidden.memory[at] - filtered.dhidden.memory[at]));
        }
        ASSERT_LE(moved, bound + 1e-5) << t;
        least_share = std::min(least_share, bound > 1e-3 ? 1 - moved / bound : 1);
      }
      EXPECT_LT(least_share, 0.95);  // the bound is not idle
    }
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

TEST(LinearCrossEntropyFilter, SmoothingAloneIsTheMeanOfTheWeights) {
  // With e = 1 and a filter that drops every entry but the label's: p_y w_y - the mean weight.
  Head<float> head(1, 2, 900);
  head.hidden.memory[0] = 0;
  head.hidden.memory[1] = 0;
  head.labels[0] = 777;
  head.run({.label_smoothing = 1, .filter = 1.0f / 512}, true, false);
  for (size_t c = 0; c < 2; ++c) {
    double mean = 0;
    for (size_t v = 0; v < 900; ++v) {
      mean += head.weight.memory[v * 2 + c] / 900.0;
    }
    EXPECT_NEAR(head.dhidden.memory[c], head.weight.memory[777 * 2 + c] / 900.0 - mean, 1e-6);
  }
}

TEST(LinearCrossEntropyFilter, GivesTheSameBitsForAnyNumberOfThreads) {
  for (const bool sorted : {false, true}) {
    const auto run = [&](int threads) {
      Head<float> head = head_with_frequent_tokens(700, 24, 11000);
      set_thread_count(threads);
      head.run({.label_smoothing = 0.1f,
                .filter = kFilter,
                .filter_weight_gradient = true,
                .sort_vocabulary = sorted});
      set_thread_count(0);
      return std::vector{head.loss.memory, head.dhidden.memory, head.dweight.memory};
    };
    const auto one = run(1);
    for (const int threads : {2, 5}) {
      EXPECT_EQ(run(threads), one) << threads;
    }
  }
}

TEST(LinearCrossEntropyFilter, ANumberThatIsNotFiniteMakesItsRowNan) {
  for (const float bad : {kNan, kInfinity}) {
    Head<float> head(6, 4, 600);
    head.hidden.memory[0] = bad;
    head.run({.filter = kFilter, .sort_vocabulary = bad == kNan}, true, false);
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
  EXPECT_NO_THROW(head.run({.label_smoothing = 0.1f, .filter = 0.001f}));
  EXPECT_THROW(head.run({.label_smoothing = 0.1f, .softcap = 20, .filter = 0.001f}),
               InvalidArgument);
  EXPECT_THROW(head.run({.sort_vocabulary = true}), InvalidArgument);
  EXPECT_THROW(head.run({.filter_weight_gradient = true}), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
