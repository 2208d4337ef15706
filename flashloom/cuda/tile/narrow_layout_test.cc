#include "flashloom/cuda/tile/narrow_layout.h"

#include <gtest/gtest.h>

#include <set>

namespace flashloom::cuda {
namespace {

TEST(NarrowLayout, GivesEveryElementOfATileItsOwnPlace) {
  constexpr uint32_t kRows = 128;
  constexpr uint32_t kColumns = 80;
  std::set<uint32_t> places;
  for (uint32_t row = 0; row < kRows; ++row) {
    for (uint32_t column = 0; column < kColumns; ++column) {
      const uint32_t place = narrow_offset(row, column, kRows);
      EXPECT_LT(place, kRows * kColumns * 2);
      EXPECT_EQ(place, narrow_offset(row, column / 8 * 8, kRows) + column % 8 * 2);
      places.insert(place);
    }
  }
  EXPECT_EQ(places.size(), kRows * kColumns);
}

TEST(NarrowLayout, PutsEightRowsOfAColumnGroupInDifferentBanks) {
  for (uint32_t column = 0; column < 80; column += 8) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 8; ++row) {
      banks.insert(narrow_offset(row, column, 64) % 128 / 16);
    }
    EXPECT_EQ(banks.size(), 8u);
  }
}

// Swizzle mode 3 is 32 bytes.
TEST(NarrowLayout, DescribesItsPanels) {
  constexpr uint64_t kDescriptor = narrow_descriptor(0x12340, 128);
  static_assert((kDescriptor & 0x3fff) == 0x1234);
  static_assert((kDescriptor >> 16 & 0x3fff) * 16 == narrow_offset(0, 16, 128));
  static_assert((kDescriptor >> 32 & 0x3fff) * 16 == narrow_offset(8, 0, 128));
  static_assert(kDescriptor >> 62 == 3);
  EXPECT_EQ(narrow_step(3), narrow_offset(48, 0, 128));
}

}  // namespace
}  // namespace flashloom::cuda
