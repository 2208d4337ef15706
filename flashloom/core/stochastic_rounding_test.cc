#include "flashloom/core/stochastic_rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

namespace flashloom {
namespace {

TEST(StochasticRounding, MeansTheNumberItself) {
  // 1 + 2^-10 lies an eighth of the way from 1 to the next bf16, 1 + 2^-7.
  for (const float value : {1 + 0x1p-10f, -(1 + 0x1p-10f), 3.14159f, 1e-30f, 0.7f}) {
    constexpr int kDraws = 40000;
    double sum = 0;
    for (int i = 0; i < kDraws; ++i) {
      sum += static_cast<float>(
          round_stochastically(value, rounding_bits(1, 1, static_cast<uint64_t>(i))));
    }
    // A coin between neighbours 2^-7 apart has a deviation of at most half of that.
    const double ulp = std::ldexp(1.0, std::ilogb(value) - 7);
    EXPECT_NEAR(sum / kDraws, value, 4 * 0.5 * ulp / std::sqrt(kDraws)) << value;
  }
}

TEST(StochasticRounding, KeepsWhatBf16Holds) {
  for (const float value :
       {0.0f, -0.0f, 1.0f, -2.5f, 0x1p-133f, std::numeric_limits<float>::infinity()}) {
    for (const uint16_t bits : {0, 1, 0x8000, 0xffff}) {
      const auto rounded = static_cast<float>(round_stochastically(value, bits));
      EXPECT_EQ(rounded, value);
      EXPECT_EQ(std::signbit(rounded), std::signbit(value));
    }
  }
}

TEST(StochasticRounding, KeepsNanAndMakesNoInfinity) {
  EXPECT_TRUE(std::isnan(
      static_cast<float>(round_stochastically(std::numeric_limits<float>::quiet_NaN(), 0xffff))));
  EXPECT_TRUE(
      std::isnan(static_cast<float>(round_stochastically(std::bit_cast<float>(0x7f800001u), 0))));
  const float most = std::numeric_limits<float>::max();
  EXPECT_EQ(round_stochastically(most, 0xffff).bits, 0x7f7f);
  EXPECT_EQ(round_stochastically(-most, 0xffff).bits, 0xff7f);
}

TEST(StochasticRounding, BitsDifferBySeedStepAndIndex) {
  std::set<std::array<uint32_t, 4>> blocks;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    for (uint64_t step = 1; step < 4; ++step) {
      for (uint64_t block = 0; block < 3; ++block) {
        blocks.insert(rounding_block(seed, step, block));
      }
    }
  }
  EXPECT_EQ(blocks.size(), 27U);
  const std::array<uint32_t, 4> block = rounding_block(5, 6, 7);
  EXPECT_EQ(rounding_bits(5, 6, 56), block[0] & 0xffff);
  EXPECT_EQ(rounding_bits(5, 6, 57), block[0] >> 16);
  EXPECT_EQ(rounding_bits(5, 6, 63), block[3] >> 16);
}

}  // namespace
}  // namespace flashloom
