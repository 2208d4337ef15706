#include "flashloom/cuda/tile/shared_layout.h"

#include <gtest/gtest.h>

#include <set>

namespace flashloom::cuda {
namespace {

TEST(SharedLayout, GivesEveryElementOfATileItsOwnPlace) {
  constexpr uint32_t kRows = 128;
  constexpr uint32_t kColumns = 128;
  std::set<uint32_t> places;
  for (uint32_t row = 0; row < kRows; ++row) {
    for (uint32_t column = 0; column < kColumns; ++column) {
      const uint32_t place = swizzled_offset(row, column, kRows);
      EXPECT_EQ(place % 2, 0u);
      EXPECT_LT(place, kRows * kColumns * 2);
      places.insert(place);
    }
  }
  EXPECT_EQ(places.size(), kRows * kColumns);
}

// The swizzle is what makes stmatrix and ldmatrix free of bank conflicts.
TEST(SharedLayout, PutsEightRowsOfAColumnGroupInDifferentBanks) {
  for (uint32_t column = 0; column < 64; column += 8) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 8; ++row) {
      banks.insert(swizzled_offset(row, column, 64) % 128 / 16);
    }
    EXPECT_EQ(banks.size(), 8u);
  }
}

TEST(SharedLayout, KeepsSixteenBytesTogether) {
  for (uint32_t row = 0; row < 64; ++row) {
    for (uint32_t column = 0; column < 128; column += 8) {
      const uint32_t first = swizzled_offset(row, column, 64);
      EXPECT_EQ(first % 16, 0u);
      for (uint32_t i = 1; i < 8; ++i) {
        EXPECT_EQ(swizzled_offset(row, column + i, 64), first + 2 * i);
      }
    }
  }
}

// Fields of the descriptor in the PTX ISA: address bits 0-13, leading offset 16-29, stride offset
// 32-45, swizzle mode 62-63 (1 is 128 bytes), all lengths in units of 16 bytes.
TEST(SharedLayout, BuildsMatrixDescriptorsFieldByField) {
  constexpr uint64_t kDescriptor = matrix_descriptor(0x12340, 16384, 1024);
  static_assert((kDescriptor & 0x3fff) == 0x1234);
  static_assert((kDescriptor >> 16 & 0x3fff) == 1024);
  static_assert((kDescriptor >> 32 & 0x3fff) == 64);
  static_assert(kDescriptor >> 62 == 1);
  EXPECT_EQ(moved_descriptor(kDescriptor, 96), matrix_descriptor(0x12340 + 96, 16384, 1024));
  EXPECT_EQ(k_major_descriptor(0x400), matrix_descriptor(0x400, 16, 1024));
  EXPECT_EQ(mn_major_descriptor(0x400, 128), matrix_descriptor(0x400, 128 * 128, 1024));
}

// A step of 16 along the reduced dimension: 32 bytes along a row until the panel ends, or 16 rows.
TEST(SharedLayout, StepsAlongTheReducedDimension) {
  constexpr uint32_t kRows = 64;
  for (uint32_t step = 0; step < 8; ++step) {
    EXPECT_EQ(k_major_step(step, kRows), swizzled_offset(0, 16 * step, kRows));
    EXPECT_EQ(mn_major_step(step), swizzled_offset(16 * step, 0, 256));
  }
}

}  // namespace
}  // namespace flashloom::cuda
