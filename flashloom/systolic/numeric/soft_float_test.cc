#include "flashloom/systolic/numeric/soft_float.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/systolic/numeric/fixed_point_for_test.h"

namespace flashloom::systolic {
namespace {

// Bits that meet every case: uniform bits, numbers near each other (cancellation), numbers whose
// product lies near the addend, specials.
class Operands {
 public:
  Operands(FloatFormat product, FloatFormat addend, uint64_t seed)
      : product_(product), addend_(addend), random_(seed, RandomStream::test) {}

  void next() {
    a = any(product_);
    b = any(product_);
    c = any(addend_);
    const uint32_t choice = random_.below(4);
    if (choice < 2) {  // c within a few places of -a·b
      const uint32_t near = FixedPointFma{product_, addend_, addend_}(a, b, addend_.sign_bit());
      const uint32_t step = random_.below(4) << random_.below(8);
      c = ((near ^ addend_.sign_bit()) + (random_.below(2) != 0 ? step : 0u - step)) &
          addend_.mask();
    } else if (choice == 2) {  // c far below a half of the last place
      c = any(addend_) & ~(addend_.infinity() & (addend_.infinity() >> 1));
    }
  }

  uint32_t a = 0;
  uint32_t b = 0;
  uint32_t c = 0;

 private:
  uint32_t any(FloatFormat format) {
    const uint32_t bits = random_.bits() & format.mask();
    switch (random_.below(16)) {
      case 0: {
        const uint32_t specials[] = {0,
                                     format.infinity(),
                                     format.nan(),
                                     format.one(),
                                     format.infinity() - 1,
                                     format.fraction_mask() + 1,
                                     format.fraction_mask(),
                                     1};
        return specials[random_.below(8)] | (bits & format.sign_bit());
      }
      case 1:  // long runs of ones and zeros
        return bits & ~(format.fraction_mask() >> random_.below(format.fraction_bits));
      default:
        return bits;
    }
  }

  FloatFormat product_;
  FloatFormat addend_;
  RandomSequence random_;
};

constexpr int kRandomCases = 2'000'000;  // for each of five pairs of formats: 10^7 in all

void check_fma(const ArrayFormats& formats, uint64_t seed) {
  Operands operands(formats.element, formats.accumulator, seed);
  const FixedPointFma to_accumulator{formats.element, formats.accumulator, formats.accumulator};
  const FixedPointFma to_element{formats.element, formats.accumulator, formats.element};
  for (int i = 0; i < kRandomCases; ++i) {
    operands.next();
    const DualRounded result = fma_dual(formats, operands.a, operands.b, operands.c);
    ASSERT_EQ(result.accumulator, to_accumulator(operands.a, operands.b, operands.c))
        << std::hex << operands.a << " " << operands.b << " " << operands.c;
    ASSERT_EQ(result.element, to_element(operands.a, operands.b, operands.c))
        << std::hex << operands.a << " " << operands.b << " " << operands.c;
  }
}

TEST(SystolicSoftFloat, FusedMultiplyAddAgreesWithFixedPointFp16) {
  check_fma({kFp16, kFp32}, 1);
}

TEST(SystolicSoftFloat, FusedMultiplyAddAgreesWithFixedPointBf16) {
  check_fma({kBf16, kFp32}, 2);
}

TEST(SystolicSoftFloat, FusedMultiplyAddAgreesWithFixedPointFp32) {
  check_fma({kFp32, kFp32}, 3);
}

TEST(SystolicSoftFloat, FusedMultiplyAddAgreesWithFixedPointHalfSums) {
  check_fma({kFp16, kFp16}, 4);
  check_fma({kBf16, kBf16}, 5);
}

// The processor's own fused multiply-add, where nothing is subnormal.
TEST(SystolicSoftFloat, FusedMultiplyAddAgreesWithTheProcessor) {
  Operands operands(kFp32, kFp32, 6);
  int compared = 0;
  for (int i = 0; i < kRandomCases / 4; ++i) {
    operands.next();
    const float a = std::bit_cast<float>(operands.a);
    const float b = std::bit_cast<float>(operands.b);
    const float c = std::bit_cast<float>(operands.c);
    const float expected = std::fma(a, b, c);
    if (std::isnormal(a) && std::isnormal(b) && std::isnormal(c) &&
        std::abs(expected) > 0x1.000002p-126f) {
      const uint32_t bits = std::isnan(expected) ? kFp32.nan() : std::bit_cast<uint32_t>(expected);
      ASSERT_EQ(fma(kFp32, operands.a, operands.b, operands.c), bits)
          << std::hex << operands.a << " " << operands.b << " " << operands.c;
      ++compared;
    }
  }
  EXPECT_GT(compared, kRandomCases / 16);
}

// Every boundary of a narrower format: the halves between neighbours, and one step to both sides.
void check_boundaries(FloatFormat narrow) {
  const int dropped = kFp32.fraction_bits - narrow.fraction_bits;
  const FixedPointFma model{kFp32, kFp32, narrow};
  for (uint32_t exponent = 0; exponent <= kFp32.exponent_mask(); ++exponent) {
    for (uint32_t fraction = 0; fraction <= narrow.fraction_mask(); ++fraction) {
      const uint32_t lower = (exponent << 23) | (fraction << dropped);
      const uint32_t half = lower | (uint32_t{1} << (dropped - 1));
      for (const uint32_t bits : {lower, lower + 1, half - 1, half, half + 1}) {
        ASSERT_EQ(convert(narrow, kFp32, bits), model(bits, kFp32.one(), kFp32.sign_bit()))
            << std::hex << bits;
        const uint32_t negative = bits | kFp32.sign_bit();
        ASSERT_EQ(convert(narrow, kFp32, negative), model(negative, kFp32.one(), kFp32.sign_bit()))
            << std::hex << negative;
      }
    }
  }
}

TEST(SystolicSoftFloat, RoundsEveryBoundaryOfFp16) {
  check_boundaries(kFp16);
}

TEST(SystolicSoftFloat, RoundsEveryBoundaryOfBf16) {
  check_boundaries(kBf16);
}

TEST(SystolicSoftFloat, FlushesAfterRounding) {
  // F16C gives the smallest normal number from (1 - 2^-11) 2^-14 on; with unbounded exponent it is
  // reached at (1 - 2^-12) 2^-14.
  const auto half = [](float value) {
    return convert(kFp16, kFp32, std::bit_cast<uint32_t>(value));
  };
  EXPECT_EQ(half(0x1p-14f * (1 - 0x1p-12f)), 0x0400u);
  EXPECT_EQ(half(0x1p-14f * (1 - 0x1p-12f - 0x1p-24f)), 0x0000u);
  EXPECT_EQ(half(-0x1p-14f * (1 - 0x1p-11f)), 0x8000u);
  EXPECT_EQ(half(65519.996f), 0x7BFFu);
  EXPECT_EQ(half(65520.0f), 0x7C00u);
}

TEST(SystolicSoftFloat, RoundsOnceAndNotTwice) {
  // 1 + 2^-8 + 2^-60 lies just above a half of bf16; through float64 it would be the half itself.
  const Exact exact{.kind = NumberKind::finite,
                    .exponent = -60,
                    .significand = (Wide{1} << 60) + (Wide{1} << 52) + 1};
  EXPECT_EQ(round_to(kBf16, exact), 0x3F81u);
}

static_assert(fma(kFp32, 0x40000000, 0x40400000, 0xC0C00000) == 0);  // 2·3 - 6 = +0
static_assert(fma(kFp16, 0x8000, 0x3C00, 0x8000) == 0x8000);         // -0·1 + -0 = -0
static_assert(fma(kFp16, 0x7C00, 0x0001, 0) == kFp16.nan());         // inf · subnormal = inf · 0

}  // namespace
}  // namespace flashloom::systolic
