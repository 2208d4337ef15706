#include "flashloom/ops/adamw_8bit/adamw_8bit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/stochastic_rounding.h"
#include "flashloom/core/tensor_for_test.h"

namespace flashloom {
namespace {

// create_dynamic_map() of bitsandbytes, word by word: linspace in f32 as PyTorch forms it (from the
// nearer end), middles, times the power of ten, sorted.
std::vector<float> map_by_definition(bool is_signed) {
  constexpr int kExponentBits = 7;
  constexpr int kNonSignBits = 7;
  std::vector<float> data;
  for (int i = 0; i < kExponentBits; ++i) {
    const int items = (is_signed ? 1 << (i + kNonSignBits - kExponentBits)
                                 : 1 << (i + kNonSignBits - kExponentBits + 1)) +
                      1;
    std::vector<float> boundaries;
    const float step = (1.0f - 0.1f) / static_cast<float>(items - 1);
    for (int k = 0; k < items; ++k) {
      boundaries.push_back(k < items / 2 ? 0.1f + step * static_cast<float>(k)
                                         : 1.0f - step * static_cast<float>(items - 1 - k));
    }
    const auto scale = static_cast<float>(std::pow(10.0, -(kExponentBits - 1) + i));
    for (int k = 0; k + 1 < items; ++k) {
      const float mean =
          (boundaries[static_cast<size_t>(k)] + boundaries[static_cast<size_t>(k) + 1]) / 2;
      data.push_back(scale * mean);
      if (is_signed) {
        data.push_back(-(scale * mean));
      }
    }
  }
  data.push_back(0);
  data.push_back(1);
  std::sort(data.begin(), data.end());
  return data;
}

uint8_t nearest(float x, bool is_signed) {
  const auto& code = dynamic_code(is_signed);
  size_t best = 0;
  for (size_t i = 1; i < code.size(); ++i) {
    const double distance = std::fabs(static_cast<double>(code[i]) - x);
    const double least = std::fabs(static_cast<double>(code[best]) - x);
    if (distance < least || (distance == least && std::fabs(code[i]) < std::fabs(code[best]))) {
      best = i;
    }
  }
  return static_cast<uint8_t>(!is_signed && x > 0 ? std::max<size_t>(1, best) : best);
}

TEST(DynamicCode, IsTheMapOfItsDefinition) {
  for (const bool is_signed : {true, false}) {
    const std::vector<float> expected = map_by_definition(is_signed);
    const auto& code = dynamic_code(is_signed);
    ASSERT_EQ(expected.size(), code.size());
    for (size_t i = 0; i < code.size(); ++i) {
      // The definition rounds four times, the code once.
      EXPECT_NEAR(code[i], expected[i], 4 * 0x1p-24 * std::fabs(expected[i]) + 0) << i;
      EXPECT_TRUE(i == 0 || code[i - 1] < code[i]);
    }
    EXPECT_EQ(code[255], 1);
    EXPECT_EQ(code[is_signed ? 127 : 0], 0);
  }
  EXPECT_NEAR(dynamic_code(true)[254], 0.9929687, 1e-7);
  EXPECT_NEAR(dynamic_code(true)[128], 5.5e-7, 1e-13);
  EXPECT_NEAR(dynamic_code(false)[1], 3.25e-7, 1e-13);
}

TEST(DynamicCode, EncodesToTheNearest) {
  for (const bool is_signed : {true, false}) {
    const auto check = [&](float x) {
      ASSERT_EQ(encode_dynamic(x, is_signed), nearest(x, is_signed))
          << x << (is_signed ? " signed" : " unsigned");
    };
    const auto check_both = [&](float x) {
      check(x);
      if (is_signed) {
        check(-x);
      }
    };
    RandomSequence random(1, RandomStream::test);
    for (int i = 0; i < 20000; ++i) {
      check_both(random.uniform());
      check_both(random.uniform() * std::pow(10.0f, -8 * random.uniform()));
    }
    const auto& code = dynamic_code(is_signed);
    for (size_t i = 0; i < code.size(); ++i) {
      EXPECT_EQ(encode_dynamic(code[i], is_signed), i);
      if (i > 0 && (is_signed || i > 1)) {
        // Around the border to the code before.
        const float middle = (code[i - 1] + code[i]) / 2;
        check(middle);
        check(std::nextafter(middle, -2.0f));
        check(std::nextafter(middle, 2.0f));
      }
    }
    for (const float x : {0.0f, 1.0f, 1e-45f, 1e-38f, 0x1p-23f, std::nextafter(1.0f, 0.0f)}) {
      check_both(x);
    }
  }
}

TEST(DynamicCode, APositiveSecondMomentIsNeverZero) {
  EXPECT_EQ(encode_dynamic(1e-30f, false), 1);
  EXPECT_EQ(encode_dynamic(0, false), 0);
}

struct Moments {
  explicit Moments(int64_t count)
      : m_codes(DType::u8, {count}),
        v_codes(DType::u8, {count}),
        m_scales(DType::f32, {(count + 255) / 256}),
        v_scales(DType::f32, {(count + 255) / 256}) {}

  QuantizedMoment m() const { return {m_codes, m_scales}; }

  QuantizedMoment v() const { return {v_codes, v_scales}; }

  double m_at(int64_t i) const {
    return double{dynamic_code(true)[m_codes.view().as<uint8_t>()[i]]} * m_scales.at({i / 256});
  }

  double v_at(int64_t i) const {
    return double{dynamic_code(false)[v_codes.view().as<uint8_t>()[i]]} * v_scales.at({i / 256});
  }

  OwnedTensor m_codes, v_codes, m_scales, v_scales;
};

// Gradients of very different sizes side by side, as a real one has.
OwnedTensor spread_gradient(int64_t count, uint64_t seed) {
  OwnedTensor gradient = normal_tensor(DType::f32, {count}, seed);
  for (int64_t i = 0; i < count; ++i) {
    gradient.set({i}, gradient.at({i}) * std::pow(10.0, -static_cast<double>(i % 5)));
  }
  return gradient;
}

TEST(Adamw8bit, EqualsTheReference) {
  for (const int64_t count : {1, 7, 255, 256, 257, 1001, 40000}) {
    AdamwOptions options = {.learning_rate = 0.01, .weight_decay = 0.1, .gradient_scale = 0.3};
    const OwnedTensor p = normal_tensor(DType::f32, {count}, 1);
    const OwnedTensor exact_p = to_dtype(p, DType::f64);
    const Moments moments(count);
    const Moments exact(count);
    int64_t other_codes = 0;
    for (options.step = 1; options.step <= 5; ++options.step) {
      const OwnedTensor gradient = spread_gradient(count, static_cast<uint64_t>(options.step));
      adamw_8bit(p, moments.m(), moments.v(), gradient, options);
      adamw_8bit_reference(exact_p, exact.m(), exact.v(), gradient, options);
      for (int64_t i = 0; i < count; ++i) {
        other_codes +=
            moments.m_codes.view().as<uint8_t>()[i] != exact.m_codes.view().as<uint8_t>()[i] ||
                    moments.v_codes.view().as<uint8_t>()[i] != exact.v_codes.view().as<uint8_t>()[i]
                ? 1
                : 0;
      }
      // A moment that lies on a border to the last bit may take the other code.
      EXPECT_LE(other_codes, count / 1000);
      EXPECT_LE(max_error(moments.m_scales, exact.m_scales), 1e-6);
      EXPECT_LE(max_error(p, exact_p), other_codes == 0 ? 1e-5 : 1e-2) << count;
    }
  }
}

TEST(Adamw8bit, KeepsMomentsWithinTheirBounds) {
  constexpr int64_t kCount = 10000;
  const OwnedTensor p(DType::f32, {kCount});
  const Moments moments(kCount);
  const OwnedTensor gradient = spread_gradient(kCount, 3);
  adamw_8bit(p, moments.m(), moments.v(), gradient, {});
  for (int64_t i = 0; i < kCount; ++i) {
    const double m = 0.1 * gradient.at({i});
    const double v = 0.001 * gradient.at({i}) * gradient.at({i});
    const double m_scale = moments.m_scales.at({i / 256});
    const double v_scale = moments.v_scales.at({i / 256});
    EXPECT_LE(std::fabs(moments.m_at(i) - m), m_scale / 142);
    EXPECT_LE(std::fabs(moments.v_at(i) - v), v_scale / 284);
    if (std::fabs(m) > m_scale / 10) {
      EXPECT_LE(std::fabs(moments.m_at(i) / m - 1), 0.07);
    }
    if (v > v_scale / 10) {
      EXPECT_LE(std::fabs(moments.v_at(i) / v - 1), 0.035);
    }
  }
}

TEST(Adamw8bit, MovesTheParameterByTheMomentsBeforeTheyAreStored) {
  // In the first step nothing was stored yet, so it is that of adamw() bit for bit.
  constexpr int64_t kCount = 3000;
  const AdamwOptions options = {.weight_decay = 0.1};
  const OwnedTensor p = normal_tensor(DType::f32, {kCount}, 1);
  const OwnedTensor q = p;
  const OwnedTensor m(DType::f32, {kCount});
  const OwnedTensor v(DType::f32, {kCount});
  const Moments moments(kCount);
  const OwnedTensor gradient = spread_gradient(kCount, 3);
  adamw_8bit(p, moments.m(), moments.v(), gradient, options);
  adamw(q, m, v, gradient, options);
  EXPECT_TRUE(same_bits(p, q));
}

TEST(Adamw8bit, AnElementWhoseGradientsStopDoesNotLeap) {
  // As the row of an embedding whose token is seen once: m and v decay far below their block's
  // largest, and v, being a square, leaves the code's range first.
  constexpr int64_t kCount = 256;
  const OwnedTensor p(DType::f32, {kCount});
  const Moments moments(kCount);
  AdamwOptions options = {.learning_rate = 1e-3};
  OwnedTensor gradient(DType::f32, {kCount});
  for (options.step = 1; options.step <= 60; ++options.step) {
    gradient.fill(1);
    for (int64_t i = 0; i < 128; ++i) {
      gradient.set({i}, options.step == 1 ? 1e-4 : 0);
    }
    const double before = p.at({0});
    adamw_8bit(p, moments.m(), moments.v(), gradient, options);
    // f32 moments would move it by less than 2 learning rates in the first steps.
    ASSERT_LE(std::fabs(p.at({0}) - before), 2 * options.learning_rate) << options.step;
  }
}

TEST(Adamw8bit, RoundsABf16ParameterStochastically) {
  constexpr int64_t kCount = 5001;
  const AdamwOptions options = {.learning_rate = 1e-4,
                                .step = 3,
                                .rounding = AdamwRounding::stochastic,
                                .seed = 9,
                                .position = 1234};
  const OwnedTensor start = normal_tensor(DType::bf16, {kCount}, 1);
  const OwnedTensor p = start;
  const OwnedTensor exact = to_dtype(start, DType::f32);
  const Moments moments(kCount);
  const Moments same(kCount);
  const OwnedTensor gradient = spread_gradient(kCount, 3);
  adamw_8bit(p, moments.m(), moments.v(), gradient, options);
  adamw_8bit(exact, same.m(), same.v(), gradient, options);
  for (int64_t i = 0; i < kCount; ++i) {
    const bf16 expected = round_stochastically(
        exact.view().as<float>()[i], rounding_bits(9, 3, static_cast<uint64_t>(1234 + i)));
    ASSERT_EQ(p.view().as<bf16>()[i].bits, expected.bits) << i;
  }
}

TEST(Adamw8bit, FindsTheMinimumAsAdamwDoes) {
  // sum of c_i (p_i - t_i)^2 with curvatures over three decades.
  constexpr int64_t kCount = 1000;
  const OwnedTensor target = normal_tensor(DType::f32, {kCount}, 8);
  double losses[2] = {};
  for (const bool quantized : {false, true}) {
    const OwnedTensor p(DType::f32, {kCount});
    const OwnedTensor m(DType::f32, {kCount});
    const OwnedTensor v(DType::f32, {kCount});
    const Moments moments(kCount);
    OwnedTensor gradient(DType::f32, {kCount});
    AdamwOptions options;
    for (options.step = 1; options.step <= 300; ++options.step) {
      options.learning_rate = 0.05 * (1 - static_cast<double>(options.step) / 301);
      double loss = 0;
      for (int64_t i = 0; i < kCount; ++i) {
        const double curvature = std::pow(10.0, -static_cast<double>(i % 4));
        const double distance = p.at({i}) - target.at({i});
        gradient.set({i}, 2 * curvature * distance);
        loss += curvature * distance * distance;
      }
      losses[quantized ? 1 : 0] = loss;
      if (quantized) {
        adamw_8bit(p, moments.m(), moments.v(), gradient, options);
      } else {
        adamw(p, m, v, gradient, options);
      }
    }
  }
  EXPECT_LT(losses[0], 1);  // from about 278
  EXPECT_LT(losses[1], 1);
}

TEST(Adamw8bit, GivesTheSameBitsForAnyNumberOfThreads) {
  constexpr int64_t kCount = 100003;
  std::vector<OwnedTensor> results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    const OwnedTensor p = normal_tensor(DType::bf16, {kCount}, 1);
    const Moments moments(kCount);
    const OwnedTensor gradient = normal_tensor(DType::f32, {kCount}, 4);
    for (int64_t step = 1; step <= 2; ++step) {
      adamw_8bit(p, moments.m(), moments.v(), gradient,
                 {.step = step, .rounding = AdamwRounding::stochastic});
    }
    results[run] = {p, moments.m_codes, moments.v_codes, moments.m_scales, moments.v_scales};
  }
  set_thread_count(0);
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

TEST(Adamw8bit, RejectsBadArguments) {
  const OwnedTensor x(DType::f32, {300});
  const Moments good(300);
  const Moments small(100);
  EXPECT_NO_THROW(adamw_8bit(x, good.m(), good.v(), x, {}));
  EXPECT_THROW(adamw_8bit(x, small.m(), good.v(), x, {}), InvalidArgument);
  EXPECT_THROW(adamw_8bit(x, good.m(), {good.v_codes, small.v_scales}, x, {}), InvalidArgument);
  EXPECT_THROW(adamw_8bit(x, {x, good.m_scales}, good.v(), x, {}), InvalidArgument);
  EXPECT_THROW(adamw_8bit(x, good.m(), good.v(), OwnedTensor(DType::f32, {299}), {}),
               InvalidArgument);
  EXPECT_THROW(adamw_8bit({}, good.m(), good.v(), x, {}), InvalidArgument);
  EXPECT_THROW(adamw_8bit(x, good.m(), good.v(), x, {.step = 0}), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
