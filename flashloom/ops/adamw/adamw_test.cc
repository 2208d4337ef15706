#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/stochastic_rounding.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/adamw/adamw_reference.h"

namespace flashloom {
namespace {

OwnedTensor read_numbers(std::ifstream& file, int64_t count) {
  OwnedTensor numbers(DType::f32, {count});
  for (int64_t i = 0; i < count; ++i) {
    std::string word;
    EXPECT_TRUE(file >> word);
    numbers.set({i}, std::strtod(word.c_str(), nullptr));
  }
  return numbers;
}

TEST(Adamw, FollowsPyTorchStepByStep) {
  std::ifstream file(std::string(FLASHLOOM_SOURCE_DIR) + "/tests/golden/ops/adamw.txt");
  int64_t steps = 0;
  int64_t size = 0;
  int runs = 0;
  for (; file >> steps >> size; ++runs) {
    AdamwOptions options;
    file >> options.learning_rate >> options.weight_decay;
    const OwnedTensor parameter = read_numbers(file, size);
    const OwnedTensor m(DType::f32, {size});
    const OwnedTensor v(DType::f32, {size});
    for (options.step = 1; options.step <= steps; ++options.step) {
      const OwnedTensor gradient = read_numbers(file, size);
      const OwnedTensor expected_m = read_numbers(file, size);
      const OwnedTensor expected_v = read_numbers(file, size);
      const OwnedTensor expected = read_numbers(file, size);
      adamw(parameter, m, v, gradient, options);
      for (int64_t i = 0; i < size; ++i) {
        // Equal to the last bit with fused multiply-add; without, one more rounding of each term.
        // PyTorch's vector square root is not always the nearest number: some ulp of the update.
        const double g = gradient.at({i});
        EXPECT_NEAR(m.at({i}), expected_m.at({i}), 0x1p-22 * (std::fabs(m.at({i})) + std::fabs(g)));
        EXPECT_NEAR(v.at({i}), expected_v.at({i}), 0x1p-22 * v.at({i}));
        EXPECT_NEAR(parameter.at({i}), expected.at({i}),
                    static_cast<double>(options.step) *
                        (0x1p-23 * std::fabs(expected.at({i})) + 0x1p-20 * options.learning_rate));
      }
    }
  }
  EXPECT_EQ(runs, 2);
}

TEST(Adamw, EqualsTheReference) {
  for (const int64_t count : {1, 7, 64, 1001, 40000}) {
    for (const double beta1 : {0.9, 0.3}) {
      const AdamwOptions options = {.learning_rate = 0.01,
                                    .beta1 = beta1,
                                    .beta2 = 0.95,
                                    .epsilon = 1e-3,
                                    .weight_decay = 0.1,
                                    .gradient_scale = 0.3,
                                    .step = 5};
      const OwnedTensor p = normal_tensor(DType::f32, {count}, 1);
      const OwnedTensor m = normal_tensor(DType::f32, {count}, 2);
      OwnedTensor v = normal_tensor(DType::f32, {count}, 3);
      for (int64_t i = 0; i < count; ++i) {
        v.set({i}, std::fabs(v.at({i})));
      }
      const OwnedTensor gradient = normal_tensor(DType::f32, {count}, 4);
      const OwnedTensor exact_p = to_dtype(p, DType::f64);
      const OwnedTensor exact_m = to_dtype(m, DType::f64);
      const OwnedTensor exact_v = to_dtype(v, DType::f64);
      adamw(p, m, v, gradient, options);
      adamw_reference(exact_p, exact_m, exact_v, gradient, options);
      // A dozen roundings of numbers of a few units, and the rounded factors.
      EXPECT_LE(max_error(p, exact_p), 12 * 0x1p-23);
      EXPECT_LE(max_error(m, exact_m), 12 * 0x1p-23);
      EXPECT_LE(max_error(v, exact_v), 12 * 0x1p-23);
    }
  }
}

TEST(Adamw, FirstStepMovesByTheLearningRateAgainstTheGradient) {
  // m^ / sqrt(v^) is the sign of the gradient whatever its size.
  OwnedTensor p(DType::f32, {3});
  const OwnedTensor m(DType::f32, {3});
  const OwnedTensor v(DType::f32, {3});
  OwnedTensor gradient(DType::f32, {3});
  gradient.set({0}, 1e-3);
  gradient.set({1}, -1e3);
  adamw(p, m, v, gradient, {.learning_rate = 0.25, .epsilon = 1e-12});
  EXPECT_NEAR(p.at({0}), -0.25, 1e-6);
  EXPECT_NEAR(p.at({1}), 0.25, 1e-6);
  EXPECT_EQ(p.at({2}), 0);
}

TEST(Adamw, WeightDecayDoesNotPassThroughTheMoments) {
  OwnedTensor p(DType::f32, {1});
  p.fill(8);
  const OwnedTensor m(DType::f32, {1});
  const OwnedTensor v(DType::f32, {1});
  const OwnedTensor gradient(DType::f32, {1});
  adamw(p, m, v, gradient, {.learning_rate = 0.5, .weight_decay = 0.25});
  EXPECT_EQ(p.at({0}), 7);
  EXPECT_EQ(m.at({0}), 0);
  EXPECT_EQ(v.at({0}), 0);
}

// The f32 update of a bf16 parameter, before it is rounded.
OwnedTensor updated_in_f32(const OwnedTensor& parameter, const OwnedTensor& gradient,
                           const AdamwOptions& options) {
  const int64_t count = parameter.view().size();
  OwnedTensor updated = to_dtype(parameter, DType::f32);
  const OwnedTensor m = normal_tensor(DType::f32, {count}, 2);
  const OwnedTensor v(DType::f32, {count});
  adamw(updated, m, v, gradient, options);
  return updated;
}

TEST(Adamw, RoundsABf16ParameterOnceAsAsked) {
  for (const int64_t count : {1, 7, 8, 1001, 40000}) {
    for (const int64_t position : {0, 3, 16, 1 << 20}) {
      AdamwOptions options = {
          .learning_rate = 1e-4, .weight_decay = 0.1, .step = 9, .seed = 77, .position = position};
      const OwnedTensor start = normal_tensor(DType::bf16, {count}, 1);
      const OwnedTensor gradient = normal_tensor(DType::f32, {count}, 4);
      const OwnedTensor exact = updated_in_f32(start, gradient, options);
      for (const AdamwRounding rounding : {AdamwRounding::nearest, AdamwRounding::stochastic}) {
        options.rounding = rounding;
        const OwnedTensor p = start;
        const OwnedTensor m = normal_tensor(DType::f32, {count}, 2);
        const OwnedTensor v(DType::f32, {count});
        adamw(p, m, v, gradient, options);
        for (int64_t i = 0; i < count; ++i) {
          const float value = exact.view().as<float>()[i];
          const bf16 expected =
              rounding == AdamwRounding::nearest
                  ? bf16(value)
                  : round_stochastically(value,
                                         rounding_bits(77, 9, static_cast<uint64_t>(position + i)));
          ASSERT_EQ(p.view().as<bf16>()[i].bits, expected.bits) << i << " of " << count;
        }
      }
    }
  }
}

TEST(Adamw, StochasticRoundingAddsUpWhatNearestLoses) {
  // A learning rate of 2^-14 moves weights of 1 by a 64th of the way to the next bf16 below, 2^-8
  // away, so that to nearest they never move.
  constexpr int64_t kCount = 4096;
  constexpr int64_t kSteps = 64;
  for (const AdamwRounding rounding : {AdamwRounding::nearest, AdamwRounding::stochastic}) {
    OwnedTensor p(DType::bf16, {kCount});
    p.fill(1);
    const OwnedTensor m(DType::f32, {kCount});
    const OwnedTensor v(DType::f32, {kCount});
    OwnedTensor gradient(DType::f32, {kCount});
    gradient.fill(1);
    AdamwOptions options = {.learning_rate = 0x1p-14, .epsilon = 0, .rounding = rounding};
    for (options.step = 1; options.step <= kSteps; ++options.step) {
      adamw(p, m, v, gradient, options);
    }
    double mean = 0;
    for (int64_t i = 0; i < kCount; ++i) {
      mean += p.at({i}) / kCount;
    }
    const double expected = rounding == AdamwRounding::nearest ? 1 : 1 - kSteps * 0x1p-14;
    // A weight's deviation is 2^-8, that of the mean of 4096 a 64th of it.
    EXPECT_NEAR(mean, expected, rounding == AdamwRounding::nearest ? 0 : 3 * 0x1p-14);
  }
}

TEST(Adamw, GivesTheSameBitsForAnyNumberOfThreads) {
  const int64_t count = 100003;
  std::vector<OwnedTensor> results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    const OwnedTensor p = normal_tensor(DType::f32, {count}, 1);
    const OwnedTensor m = normal_tensor(DType::f32, {count}, 2);
    const OwnedTensor v(DType::f32, {count});
    const OwnedTensor gradient = normal_tensor(DType::f32, {count}, 4);
    adamw(p, m, v, gradient, {});
    results[run] = {p, m, v};
  }
  set_thread_count(0);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

TEST(Adamw, RejectsBadArguments) {
  const OwnedTensor x(DType::f32, {2, 3});
  const OwnedTensor turned(DType::f32, {3, 2});
  const OwnedTensor half(DType::f16, {2, 3});
  const OwnedTensor gaps(DType::f32, {2, 3}, 1);
  EXPECT_THROW(adamw(x, x, x, turned, {}), InvalidArgument);
  EXPECT_THROW(adamw(x, turned, x, x, {}), InvalidArgument);
  EXPECT_THROW(adamw(x, x, half, x, {}), InvalidArgument);
  EXPECT_THROW(adamw(half, x, x, x, {}), InvalidArgument);
  EXPECT_THROW(adamw(x, x, x, x, {.position = -1}), InvalidArgument);
  EXPECT_THROW(adamw(gaps, x, x, x, {}), InvalidArgument);
  EXPECT_THROW(adamw({}, {}, {}, {}, {}), InvalidArgument);
  EXPECT_THROW(adamw(x, x, x, x, {.step = 0}), InvalidArgument);
  EXPECT_THROW(adamw(x, x, x, x, {.beta1 = 1}), InvalidArgument);
  EXPECT_THROW(adamw(x, x, x, x, {.beta2 = -0.1}), InvalidArgument);
  EXPECT_THROW(adamw(x, x, x, x, {.learning_rate = std::nan("")}), InvalidArgument);
  EXPECT_THROW(adamw(x, x, x, x, {.gradient_scale = INFINITY}), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
