#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "flashloom/core/dtype.h"
#include "flashloom/core/philox.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/vector_math/vector_math_test.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/exp-inl.h"
#include "flashloom/ops/vector_math/normal-inl.h"
#include "flashloom/ops/vector_math/sincos-inl.h"
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

void exp_all(const float* x, float* y, size_t count) {
  for_vectors(count, [&](auto d, size_t i)
                         HWY_ATTR { store_f32(d, exp_f32(d, load_f32(d, x + i)), y + i); });
}

void logistic_all(const float* x, float* value, float* complement, size_t count) {
  for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
    const auto s = logistic_f32(d, load_f32(d, x + i));
    store_f32(d, s.value, value + i);
    store_f32(d, s.complement, complement + i);
  });
}

void normal_all(const float* x, float* cumulative, float* density, size_t count) {
  for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
    const auto n = normal_f32(d, load_f32(d, x + i));
    store_f32(d, n.cumulative, cumulative + i);
    store_f32(d, n.density, density + i);
  });
}

void sincos_all(const double* x, double* sine, double* cosine, size_t count) {
  const hn::CappedTag<double, 2> d;
  for (size_t i = 0; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    const auto both = sincos_f64(d, hn::LoadU(d, x + i));
    hn::StoreU(both.sine, d, sine + i);
    hn::StoreU(both.cosine, d, cosine + i);
  }
}

void round_all(const float* x, bf16* y, float* back, size_t count) {
  for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
    store_f32(d, load_f32(d, x + i), y + i);
    store_f32(d, load_f32(d, y + i), back + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(exp_all);
HWY_EXPORT(logistic_all);
HWY_EXPORT(normal_all);
HWY_EXPORT(sincos_all);
HWY_EXPORT(round_all);

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Runs body once on every target that this machine can run, so that a lesser one is tested too.
template <class Body>
void for_each_target(Body body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(Exp, IsWithinTwoUlpOverTheWholeRange) {
  std::vector<float> x;
  for (double v = -110; v < 95; v += 0.0007) {
    x.push_back(static_cast<float>(v));
  }
  std::vector<float> y(x.size());
  for_each_target([&] {
    HWY_DYNAMIC_DISPATCH(exp_all)(x.data(), y.data(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(static_cast<double>(x[i]));
      if (exact > std::numeric_limits<float>::max()) {
        ASSERT_EQ(y[i], kInfinity) << x[i];
      } else {
        // A subnormal result is off by at most two of its own steps.
        ASSERT_NEAR(y[i], exact, 2 * std::max(exact * 0x1p-24 * 2, 0x1p-149)) << x[i];
      }
    }
  });
}

TEST(Exp, PassesInfinityAndNaN) {
  const std::vector<float> x = {0, -0.0f, kInfinity, -kInfinity, std::nanf("")};
  std::vector<float> y(x.size());
  for_each_target([&] {
    HWY_DYNAMIC_DISPATCH(exp_all)(x.data(), y.data(), x.size());
    EXPECT_EQ(y[0], 1);
    EXPECT_EQ(y[1], 1);
    EXPECT_EQ(y[2], kInfinity);
    EXPECT_EQ(y[3], 0);
    EXPECT_TRUE(std::isnan(y[4]));
  });
}

TEST(Logistic, BothSidesKeepTheirRelativePrecision) {
  std::vector<float> x;
  for (double v = -87; v < 87; v += 0.0013) {
    x.push_back(static_cast<float>(v));
  }
  std::vector<float> value(x.size());
  std::vector<float> complement(x.size());
  for_each_target([&] {
    HWY_DYNAMIC_DISPATCH(logistic_all)(x.data(), value.data(), complement.data(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double s = 1 / (1 + std::exp(-static_cast<double>(x[i])));
      const double c = 1 / (1 + std::exp(static_cast<double>(x[i])));
      // exp 2 ulp, a sum, a quotient and a product of half an ulp each.
      ASSERT_NEAR(value[i], s, s * 4 * 0x1p-23) << x[i];
      ASSERT_NEAR(complement[i], c, c * 4 * 0x1p-23) << x[i];
    }
  });
}

TEST(Normal, KeepsRelativePrecisionInBothTails) {
  std::vector<float> x;
  for (double v = -13; v < 13; v += 0.0007) {  // e^(-13^2 / 2) is still a normal number
    x.push_back(static_cast<float>(v));
  }
  std::vector<float> cumulative(x.size());
  std::vector<float> density(x.size());
  for_each_target([&] {
    HWY_DYNAMIC_DISPATCH(normal_all)(x.data(), cumulative.data(), density.data(), x.size());
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = x[i];
      const double unit = (20 + v * v / 2) * 0x1p-24;
      const double exact = 0.5 * std::erfc(-v / std::numbers::sqrt2);
      const double slope = std::exp(-v * v / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      worst = std::max(worst, std::fabs(cumulative[i] / exact - 1) / unit);
      worst = std::max(worst, std::fabs(density[i] / slope - 1) / unit);
    }
    EXPECT_LE(worst, 1);
  });
}

TEST(Normal, HandlesSpecialValues) {
  const std::vector<float> x = {0, -0.0f, 40, -40, kInfinity, -kInfinity, std::nanf("")};
  std::vector<float> cumulative(x.size());
  std::vector<float> density(x.size());
  for_each_target([&] {
    HWY_DYNAMIC_DISPATCH(normal_all)(x.data(), cumulative.data(), density.data(), x.size());
    EXPECT_NEAR(cumulative[0], 0.5, 4 * 0x1p-24);
    EXPECT_NEAR(cumulative[1], 0.5, 4 * 0x1p-24);
    for (const size_t i : {2, 4}) {
      EXPECT_EQ(cumulative[i], 1);
      EXPECT_EQ(density[i], 0);
    }
    for (const size_t i : {3, 5}) {
      EXPECT_EQ(cumulative[i], 0);
      EXPECT_EQ(density[i], 0);
    }
    EXPECT_TRUE(std::isnan(cumulative[6]));
    EXPECT_TRUE(std::isnan(density[6]));
  });
}

TEST(SineCosine, IsExactToOneBillionthForEveryPosition) {
  RandomSequence random(1, RandomStream::test);
  std::vector<double> x;
  for (int i = 0; i < 20000; ++i) {
    x.push_back(random.uniform(-1.0f, 1.0f) * std::exp2(random.uniform(-20.0f, 31.0f)));
  }
  for (int i = -64; i < 64; ++i) {
    x.push_back(i * std::numbers::pi / 4);
  }
  std::vector<double> sine(x.size());
  std::vector<double> cosine(x.size());
  for_each_target([&] {
    HWY_DYNAMIC_DISPATCH(sincos_all)(x.data(), sine.data(), cosine.data(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_NEAR(sine[i], std::sin(x[i]), 1e-9) << x[i];
      ASSERT_NEAR(cosine[i], std::cos(x[i]), 1e-9) << x[i];
    }
  });
}

TEST(Storage, RoundsToBf16AsTheScalarTypeDoes) {
  RandomSequence random(2, RandomStream::test);
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      x.push_back(std::bit_cast<float>(bits << 16 | low));
    }
  }
  x.push_back(1.0f);  // an odd count: the tail of single lanes
  std::vector<bf16> y(x.size());
  std::vector<float> back(x.size());
  for_each_target([&] {
    HWY_DYNAMIC_DISPATCH(round_all)(x.data(), y.data(), back.data(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(y[i].bits, bf16(x[i]).bits) << i;
      ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(static_cast<float>(y[i])))
          << i;
    }
  });
}

}  // namespace
}  // namespace flashloom
#endif  // HWY_ONCE
