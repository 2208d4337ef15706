#include "flashloom/systolic/numeric/units.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "flashloom/core/philox.h"
#include "flashloom/systolic/numeric/exp2.h"

namespace flashloom::systolic {
namespace {

TEST(SystolicReciprocal, AgreesWithTheProcessorsDivision) {
  RandomSequence random(1, RandomStream::test);
  for (int i = 0; i < 4'000'000; ++i) {
    const uint32_t bits = random.bits();
    const float x = std::bit_cast<float>(bits);
    const float quotient = 1.0f / x;
    if (std::isnormal(x) && std::isnormal(quotient)) {
      ASSERT_EQ(reciprocal(kFp32, bits), std::bit_cast<uint32_t>(quotient)) << std::hex << bits;
    }
  }
}

// Every fp16, against float64, whose 53 bits leave no double rounding for a quotient of 11 bits.
TEST(SystolicReciprocal, EveryFp16) {
  for (uint32_t x = 0; x <= kFp16.mask(); ++x) {
    ASSERT_EQ(reciprocal(kFp16, x), round_double(kFp16, 1.0 / to_double(kFp16, x)))
        << std::hex << x;
  }
}

static_assert(reciprocal(kFp32, 0) == 0x7F800000);           // 1 / 0
static_assert(reciprocal(kFp32, 0x80000001) == 0xFF800000);  // a subnormal is zero
static_assert(reciprocal(kFp32, 0xFF800000) == 0x80000000);
static_assert(reciprocal(kFp32, 0x7F000000) == 0x00000000);  // 2^-127 is flushed
static_assert(reciprocal(kFp32, 0x7E800000) == 0x00800000);  // 2^-126 is not
static_assert(reciprocal(kFp32, 0xFFC00001) == kFp32.nan());

TEST(SystolicCompare, GivesTheLargerByTheSignOfTheDifference) {
  const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
  RandomSequence random(2, RandomStream::test);
  for (int i = 0; i < 100'000; ++i) {
    const float a = random.normal();
    const float b = random.normal();
    const Compared result = compare(kFp32, bits(a), bits(b));
    ASSERT_EQ(result.larger, bits(a > b ? a : b));
    ASSERT_EQ(result.difference, bits(a - b));
  }
  const uint32_t minus_infinity = bits(-INFINITY);
  EXPECT_EQ(compare(kFp32, bits(-3), minus_infinity).larger, bits(-3));
  EXPECT_EQ(compare(kFp32, minus_infinity, bits(-3)).larger, bits(-3));
  // A difference that is not a number is positive: the first stays.
  EXPECT_EQ(compare(kFp32, minus_infinity, minus_infinity).larger, minus_infinity);
  EXPECT_EQ(compare(kFp32, kFp32.nan(), bits(1)).larger, kFp32.nan());
  EXPECT_EQ(compare(kFp32, bits(1), kFp32.nan()).larger, bits(1));
}

}  // namespace
}  // namespace flashloom::systolic
