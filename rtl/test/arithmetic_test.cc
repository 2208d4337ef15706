// The arithmetic units, verilated, bit for bit against two statements of them in integers: the
// benches' own (float_model.h) and the simulator's (flashloom/systolic/numeric).

#include <VAccumulatorMac.h>
#include <VCompare.h>
#include <VNarrowBfloat16.h>
#include <VNarrowHalf.h>
#include <VPeMacBfloat16.h>
#include <VPeMacFloat.h>
#include <VPeMacHalf.h>
#include <VPeMacHalf32.h>
#include <VReciprocal.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "flashloom/systolic/numeric/exp2.h"
#include "flashloom/systolic/numeric/units.h"
#include "rtl/test/float_model.h"

namespace flashloom::rtl {
namespace {

using Random = std::mt19937_64;

systolic::FloatFormat simulators(Format format) {
  return {.exponent_bits = format.exponent_bits, .fraction_bits = format.mantissa_bits};
}

// Words of a format where faults live: zeros, subnormals, ends of the normal range, ones, halves of
// the integers, infinities and NaNs, both signs.
std::vector<uint32_t> corners(Format format) {
  const uint32_t last = (1u << format.mantissa_bits) - 1;
  const uint32_t top = (1u << format.exponent_bits) - 1;
  std::vector<uint32_t> words;
  for (const uint32_t biased :
       {0u, 1u, 2u, static_cast<uint32_t>(format.bias()) - 1, static_cast<uint32_t>(format.bias()),
        static_cast<uint32_t>(format.bias()) + 1, top - 1, top}) {
    for (const uint32_t stored : {0u, 1u, last / 2, last / 2 + 1, last - 1, last}) {
      for (const uint32_t sign : {0u, 1u}) {
        words.push_back((sign << (format.bits() - 1)) | (biased << format.mantissa_bits) | stored);
      }
    }
  }
  return words;
}

uint32_t any_word(Random& random, Format format) {
  return static_cast<uint32_t>(random()) &
         static_cast<uint32_t>((uint64_t{1} << format.bits()) - 1);
}

// An addend near −a·b: the sum cancels, wholly or but for a few bits.
uint32_t near_product(Random& random, Format element, Format sum, uint32_t a, uint32_t b) {
  const uint32_t product = encode(negated(multiply(decode(a, element), decode(b, element))), sum);
  const int reach = static_cast<int>(random() % 5);
  return product + static_cast<uint32_t>(random() % 3 << (reach * 3)) - (1u << (reach * 3)) / 2;
}

// Near the border of the result's normal range: exponents are drawn so that the product is there.
uint32_t with_exponent(uint32_t word, Format format, int exponent) {
  const uint32_t mask = ((1u << format.exponent_bits) - 1) << format.mantissa_bits;
  return (word & ~mask) |
         ((static_cast<uint32_t>(exponent + format.bias()) << format.mantissa_bits) & mask);
}

template <typename Model>
struct PeMac {
  Format element;
  Format sum = kFloat;
  std::unique_ptr<Model> unit = std::make_unique<Model>();

  void run(uint32_t a, uint32_t b, uint32_t c, bool exp2) {
    unit->a = a;
    unit->b = b;
    unit->c = c;
    unit->exp2 = exp2;
    unit->eval();
  }

  bool check(uint32_t a, uint32_t b, uint32_t c) {
    run(a, b, c, false);
    const Value exact = fma(decode(a, element), decode(b, element), decode(c, sum));
    const uint32_t wide = encode(exact, sum);
    const uint32_t narrow = encode(exact, element);
    const systolic::DualRounded simulated =
        systolic::fma_dual({simulators(element), simulators(sum)}, a, b, c);
    const bool same = unit->out == wide && unit->out_element == narrow && unit->hit == 0 &&
                      simulated.accumulator == wide && simulated.element == narrow;
    EXPECT_TRUE(same) << std::hex << "a " << a << " b " << b << " c " << c << ": " << unit->out
                      << " and " << unit->out_element << ", expected " << wide << " and " << narrow
                      << ", simulator " << simulated.accumulator << " and " << simulated.element;
    return same;
  }
};

// Returns at the first fault: one is enough to read.
template <typename Model>
void check_fma(Format element, int cases) {
  PeMac<Model> mac{element};
  for (const uint32_t a : corners(element)) {
    for (const uint32_t b : corners(element)) {
      for (const uint32_t c : corners(kFloat)) {
        if (!mac.check(a, b, c)) {
          return;
        }
      }
    }
  }
  Random random(1);
  for (int i = 0; i < cases; ++i) {
    uint32_t a = any_word(random, element);
    uint32_t b = any_word(random, element);
    uint32_t c = any_word(random, kFloat);
    switch (i % 4) {
      default:  // any words
        break;
      case 1:  // comparable magnitudes
        c = with_exponent(c, kFloat, static_cast<int>(random() % 40) - 20);
        a = with_exponent(a, element, static_cast<int>(random() % 16) - 8);
        b = with_exponent(b, element, static_cast<int>(random() % 16) - 8);
        break;
      case 2:
        c = near_product(random, element, kFloat, a, b);
        break;
      case 3: {  // around the smallest normal element and sum
        const int least = i % 8 < 4 ? 1 - element.bias() : -126;
        const int half = static_cast<int>(random() % 6) - 2;
        a = with_exponent(a, element, std::max(least / 2, 1 - element.bias()) + half);
        b = with_exponent(b, element, std::max(least - least / 2, 1 - element.bias()));
        c = with_exponent(c, kFloat, std::max(least - 26 + static_cast<int>(random() % 30), -126));
        break;
      }
    }
    if (!mac.check(a, b, c)) {
      return;
    }
  }
}

TEST(PeMac, HalfFmaRoundsOnceToBothFormats) {
  check_fma<VPeMacHalf>(kHalf, 10'000'000);
}

TEST(PeMac, Bfloat16Fma) {
  check_fma<VPeMacBfloat16>(kBfloat16, 3'000'000);
}

TEST(PeMac, FloatFma) {
  check_fma<VPeMacFloat>(kFloat, 2'000'000);
}

// The model itself, against the C library where nothing is subnormal.
TEST(FloatModel, AgreesWithTheLibrarysFma) {
  Random random(2);
  for (int i = 0; i < 300'000; ++i) {
    uint32_t words[3];
    float values[3];
    for (int k = 0; k < 3; ++k) {
      words[k] =
          with_exponent(any_word(random, kFloat), kFloat, static_cast<int>(random() % 60) - 30);
      std::memcpy(&values[k], &words[k], sizeof(float));
    }
    const float expected = std::fma(values[0], values[1], values[2]);
    uint32_t bits;
    std::memcpy(&bits, &expected, sizeof bits);
    ASSERT_EQ(
        encode(fma(decode(words[0], kFloat), decode(words[1], kFloat), decode(words[2], kFloat)),
               kFloat),
        bits)
        << i;
  }
}

struct Chord {
  uint32_t slope;      // element
  uint32_t intercept;  // float32
};

uint32_t encode_double(double value, Format format) {
  int exponent;
  const double mantissa = std::frexp(std::abs(value), &exponent);
  return encode(Value{.negative = value < 0,
                      .magnitude = static_cast<uint64_t>(std::ldexp(mantissa, 53)),
                      .exponent = exponent - 53},
                format);
}

std::vector<Chord> chords(Format slope_format, int pieces) {
  std::vector<Chord> result;
  for (int piece = 0; piece < pieces; ++piece) {
    const double x0 = -(piece + 1.0) / pieces;
    const double y0 = std::exp2(x0);
    const double slope = (std::exp2(-1.0 * piece / pieces) - y0) * pieces;
    result.push_back({encode_double(slope, slope_format), encode_double(y0 - slope * x0, kFloat)});
  }
  return result;
}

// Every element and every piece on the wires; `stride` thins the elements.
template <typename Model>
void check_exp2(Format element, int pieces, uint32_t stride) {
  PeMac<Model> mac{element};
  const std::vector<Chord> table = chords(element, pieces);
  const systolic::Exp2Table simulators_table =
      systolic::exp2_table(simulators(element), systolic::kFp32, pieces);
  for (size_t piece = 0; piece < table.size(); ++piece) {
    ASSERT_EQ(table[piece].slope, simulators_table.slopes[piece]);
    ASSERT_EQ(table[piece].intercept, simulators_table.intercepts[piece]);
  }
  for (uint64_t a = 0; a < uint64_t{1} << element.bits(); a += stride) {
    const uint32_t word = static_cast<uint32_t>(a);
    const Value x = decode(word, element);
    const Exp2 parts = split(x, element, pieces);
    for (int piece = 0; piece < pieces; ++piece) {
      const Chord& chord = table[static_cast<size_t>(piece)];
      const uint32_t tagged =
          (chord.intercept & 0x00FFFFFFu) | (static_cast<uint32_t>(piece) << 24);
      mac.run(word, chord.slope, tagged, true);
      const Value exact =
          exp2(parts, x.nan, decode(chord.slope, element), decode(chord.intercept, kFloat));
      ASSERT_EQ(mac.unit->hit, piece == parts.piece) << std::hex << word << " piece " << piece;
      ASSERT_EQ(mac.unit->out, encode(exact, kFloat)) << std::hex << word << " piece " << piece;
      ASSERT_EQ(mac.unit->out_element, encode(exact, element))
          << std::hex << word << " piece " << piece;
      const systolic::ElementExp2 simulated = systolic::element_exp2(
          {simulators(element), systolic::kFp32}, word, chord.slope, tagged, pieces);
      ASSERT_EQ(mac.unit->hit, simulated.hit) << std::hex << word << " piece " << piece;
      ASSERT_EQ(mac.unit->out, simulated.value.accumulator)
          << std::hex << word << " piece " << piece;
      ASSERT_EQ(mac.unit->out_element, simulated.value.element)
          << std::hex << word << " piece " << piece;
    }
  }
}

TEST(PeMac, Exp2OfEveryHalf) {
  check_exp2<VPeMacHalf>(kHalf, 8, 1);
}

TEST(PeMac, Exp2OfEveryHalfBy32Pieces) {
  check_exp2<VPeMacHalf32>(kHalf, 32, 1);
}

TEST(PeMac, Exp2OfEveryBfloat16) {
  check_exp2<VPeMacBfloat16>(kBfloat16, 8, 1);
}

TEST(PeMac, Exp2OfFloats) {
  check_exp2<VPeMacFloat>(kFloat, 8, 16'381);
}

// With the table that the generated package holds.
TEST(AccumulatorMac, FmaAndExp2) {
  const auto unit = std::make_unique<VAccumulatorMac>();
  const systolic::Exp2Table simulators_table =
      systolic::exp2_table(systolic::kFp32, systolic::kFp32, 8);
  const std::vector<Chord> table = chords(kFloat, 8);
  const auto check = [&](uint32_t a, uint32_t b, uint32_t c, bool power) {
    unit->a = a;
    unit->b = b;
    unit->c = c;
    unit->exp2 = power;
    unit->eval();
    const Value x = decode(a, kFloat);
    Value exact;
    uint32_t simulated;
    if (power) {
      const Exp2 parts = split(x, kFloat, 8);
      const Chord& chord = table[static_cast<size_t>(parts.piece)];
      exact = exp2(parts, x.nan, decode(chord.slope, kFloat), decode(chord.intercept, kFloat));
      simulated = systolic::accumulator_exp2(systolic::kFp32, a, simulators_table);
    } else {
      exact = fma(x, decode(b, kFloat), decode(c, kFloat));
      simulated = systolic::fma(systolic::kFp32, a, b, c);
    }
    const uint32_t expected = encode(exact, kFloat);
    EXPECT_EQ(unit->out, expected) << std::hex << a << ' ' << b << ' ' << c << ' ' << power;
    EXPECT_EQ(simulated, expected) << std::hex << a << ' ' << b << ' ' << c << ' ' << power;
    return unit->out == expected && simulated == expected;
  };
  for (const uint32_t a : corners(kFloat)) {
    if (!check(a, 0, 0, true)) {
      return;
    }
  }
  Random random(6);
  for (int i = 0; i < 2'000'000; ++i) {
    const uint32_t a = i % 2 == 0 ? any_word(random, kFloat)
                                  : with_exponent(any_word(random, kFloat), kFloat,
                                                  static_cast<int>(random() % 40) - 30);
    const uint32_t b = any_word(random, kFloat);
    const uint32_t c =
        i % 3 == 0 ? near_product(random, kFloat, kFloat, a, b) : any_word(random, kFloat);
    if (!check(a, b, c, i % 8 < 4)) {
      return;
    }
  }
}

TEST(Compare, MaximumAndDifference) {
  const auto unit = std::make_unique<VCompare>();
  const auto check = [&](uint32_t a, uint32_t b) {
    unit->a = a;
    unit->b = b;
    unit->eval();
    const uint32_t difference = encode(add(decode(a, kFloat), negated(decode(b, kFloat))), kFloat);
    const uint32_t maximum = difference >> 31 != 0 ? b : a;
    EXPECT_EQ(unit->difference, difference) << std::hex << a << " - " << b;
    EXPECT_EQ(unit->maximum, maximum) << std::hex << a << " or " << b;
    const systolic::Compared simulated = systolic::compare(systolic::kFp32, a, b);
    EXPECT_EQ(simulated.difference, difference) << std::hex << a << " - " << b;
    EXPECT_EQ(simulated.larger, maximum) << std::hex << a << " or " << b;
    return unit->difference == difference && unit->maximum == maximum;
  };
  for (const uint32_t a : corners(kFloat)) {
    for (const uint32_t b : corners(kFloat)) {
      if (!check(a, b)) {
        return;
      }
    }
  }
  Random random(3);
  for (int i = 0; i < 2'000'000; ++i) {
    const uint32_t a = any_word(random, kFloat);
    uint32_t b = any_word(random, kFloat);
    if (i % 2 == 0) {
      b = a + static_cast<uint32_t>(random() % (1u << (i % 31))) - (1u << (i % 31)) / 2;
    }
    if (!check(a, b)) {
      return;
    }
  }
}

template <typename Model>
void check_narrow(Format element) {
  const auto unit = std::make_unique<Model>();
  const auto check = [&](uint32_t wide) {
    unit->wide = wide;
    unit->eval();
    const uint32_t expected = encode(decode(wide, kFloat), element);
    EXPECT_EQ(unit->narrow, expected) << std::hex << wide;
    EXPECT_EQ(systolic::convert(simulators(element), systolic::kFp32, wide), expected)
        << std::hex << wide;
    return unit->narrow == expected;
  };
  // Each element, and what lies around it and around the half way to the next one: all borders.
  const uint32_t unit_in_last_place = 1u << (kFloat.mantissa_bits - element.mantissa_bits);
  for (uint32_t word = 0; word < 1u << element.bits(); ++word) {
    const Value value = decode(word, element);
    const uint32_t wide = encode(value, kFloat);
    for (const uint32_t step : {0u, unit_in_last_place / 2, unit_in_last_place}) {
      for (uint32_t off = 0; off < 5; ++off) {
        if (!check(wide + step + off - 2)) {
          return;
        }
      }
    }
  }
  Random random(4);
  for (int i = 0; i < 2'000'000; ++i) {
    if (!check(any_word(random, kFloat))) {
      return;
    }
  }
}

TEST(Narrow, EveryBorderOfHalf) {
  check_narrow<VNarrowHalf>(kHalf);
}

TEST(Narrow, EveryBorderOfBfloat16) {
  check_narrow<VNarrowBfloat16>(kBfloat16);
}

TEST(Reciprocal, CorrectlyRoundedInFifteenCycles) {
  const auto unit = std::make_unique<VReciprocal>();
  const auto tick = [&] {
    unit->clock = 0;
    unit->eval();
    unit->clock = 1;
    unit->eval();
  };
  unit->reset = 1;
  tick();
  unit->reset = 0;
  const auto check = [&](uint32_t x) {
    unit->x = x;
    unit->start = 1;
    int cycles = 1;  // the one of the start
    for (unit->eval(); unit->done == 0 && cycles < 40; ++cycles) {
      tick();
    }
    const uint32_t expected = reciprocal(x, kFloat);
    EXPECT_EQ(unit->quotient, expected) << std::hex << "1 / " << x;
    EXPECT_EQ(systolic::reciprocal(systolic::kFp32, x), expected) << std::hex << "1 / " << x;
    EXPECT_EQ(cycles, 15);
    const bool good = unit->quotient == expected && cycles == 15;
    unit->start = 0;
    tick();
    return good;
  };
  for (const uint32_t x : corners(kFloat)) {
    if (!check(x)) {
      return;
    }
  }
  Random random(5);
  for (uint32_t i = 0; i < 1'000'000; ++i) {
    // Three quarters: mantissas in order through all of them, the rest any word.
    const uint32_t x = i % 4 != 0 ? 0x3F800000u + i * 8 + static_cast<uint32_t>(random() % 8)
                                  : any_word(random, kFloat);
    if (!check(x)) {
      return;
    }
  }
}

}  // namespace
}  // namespace flashloom::rtl
