#include "flashloom/models/llama/llama_noise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"

namespace flashloom {
namespace {

constexpr int64_t kChannels = 45;  // not whole blocks of random numbers

// Noise alone, (T, C).
std::vector<float> noise_of(const std::vector<int32_t>& cu_seqlens, const EmbeddingNoise& noise) {
  const int64_t tokens = cu_seqlens.back();
  std::vector<float> values(static_cast<size_t>(tokens * kChannels), 0.0F);
  add_embedding_noise(TensorView(values.data(), {tokens, kChannels}),
                      ConstTensorView(cu_seqlens.data(), {static_cast<int64_t>(cu_seqlens.size())}),
                      noise);
  return values;
}

TEST(EmbeddingNoise, IsUniformWithinItsBoundForEachDocument) {
  const std::vector<int32_t> bounds = {0, 400, 500, 501};
  const double alpha = 5;
  const std::vector<float> noise = noise_of(bounds, {.alpha = alpha, .seed = 1});
  for (size_t d = 0; d + 1 < bounds.size(); ++d) {
    const int64_t length = bounds[d + 1] - bounds[d];
    const double bound = alpha / std::sqrt(static_cast<double>(length * kChannels));
    double sum = 0, squares = 0, largest = 0;
    for (int64_t i = bounds[d] * kChannels; i < bounds[d + 1] * kChannels; ++i) {
      const double value = noise[static_cast<size_t>(i)];
      sum += value;
      squares += value * value;
      largest = std::max(largest, std::abs(value));
    }
    const auto count = static_cast<double>(length * kChannels);
    EXPECT_LE(largest, bound * (1 + 1e-6));
    EXPECT_GT(largest, bound * (1 - 10 / count));
    // Deviations of the mean and of the mean square of U(-1, 1): 0.58 and 0.3 / sqrt(count).
    EXPECT_NEAR(sum / count / bound, 0, 4 * 0.58 / std::sqrt(count));
    EXPECT_NEAR(squares / count / (bound * bound), 1.0 / 3, 4 * 0.3 / std::sqrt(count));
  }
}

TEST(EmbeddingNoise, DependsOnSeedStepAndTokenAlone) {
  const std::vector<float> whole = noise_of({0, 6, 12}, {.alpha = 3, .seed = 4, .step = 7});
  // The same step in two micro-batches.
  std::vector<float> parts = noise_of({0, 6}, {.alpha = 3, .seed = 4, .step = 7});
  const std::vector<float> second =
      noise_of({0, 6}, {.alpha = 3, .seed = 4, .step = 7, .first_token = 6});
  parts.insert(parts.end(), second.begin(), second.end());
  EXPECT_EQ(whole, parts);
  EXPECT_NE(whole, noise_of({0, 6, 12}, {.alpha = 3, .seed = 4, .step = 8}));
  EXPECT_NE(whole, noise_of({0, 6, 12}, {.alpha = 3, .seed = 5, .step = 7}));
  const int threads = thread_count();
  set_thread_count(3);
  EXPECT_EQ(whole, noise_of({0, 6, 12}, {.alpha = 3, .seed = 4, .step = 7}));
  set_thread_count(threads);
  // All numbers of a step differ.
  std::vector<float> sorted = noise_of({0, 1000}, {.alpha = 3});
  std::sort(sorted.begin(), sorted.end());
  const auto copies = std::distance(std::unique(sorted.begin(), sorted.end()), sorted.end());
  EXPECT_LT(copies, 200);  // of 45,000 draws of 24 bits, 60 fall together by chance
}

TEST(EmbeddingNoise, RefusesABadAlpha) {
  EXPECT_THROW(noise_of({0, 2}, {.alpha = -1}), InvalidArgument);
  EXPECT_THROW(noise_of({0, 2}, {.alpha = std::nan("")}), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
