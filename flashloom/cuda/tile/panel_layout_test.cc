#include "flashloom/cuda/tile/panel_layout.h"

#include <gtest/gtest.h>

#include <set>

namespace flashloom::cuda {
namespace {

template <class Panels>
void check_places() {
  constexpr uint32_t kRows = 96;
  constexpr uint32_t kColumns = 2 * Panels::kColumns;
  std::set<uint32_t> places;
  for (uint32_t row = 0; row < kRows; ++row) {
    for (uint32_t column = 0; column < kColumns; ++column) {
      const uint32_t place = Panels::offset(row, column, kRows);
      EXPECT_LT(place, 2 * Panels::bytes(kRows));
      EXPECT_EQ(place, Panels::offset(row, column / 8 * 8, kRows) + column % 8 * 2);
      places.insert(place);
    }
  }
  EXPECT_EQ(places.size(), kRows * kColumns);
  // Eight rows of a group of columns lie in different banks.
  for (uint32_t column = 0; column < kColumns; column += 8) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 8; ++row) {
      banks.insert(Panels::offset(row, column, kRows) % 128 / 16);
    }
    EXPECT_EQ(banks.size(), 8u);
  }
}

TEST(PanelLayout, GivesEveryElementItsOwnPlaceWithoutBankConflicts) {
  check_places<PanelLayout<128>>();
  check_places<PanelLayout<64>>();
  check_places<PanelLayout<32>>();
}

// The swizzle takes the bits of an address above its 128 bytes to those of the chunk.
TEST(PanelLayout, SwizzlesByTheNumberOfThe128Bytes) {
  for (uint32_t row = 0; row < 96; ++row) {
    for (uint32_t chunk = 0; chunk < 4; ++chunk) {
      const uint32_t plain = row * 64 + chunk * 16;
      EXPECT_EQ(PanelLayout<64>::offset(row, 8 * chunk, 96), plain ^ (plain >> 7 & 3) << 4);
    }
  }
}

TEST(PanelLayout, AgreesWithSharedLayout) {
  using Wide = PanelLayout<128>;
  for (uint32_t row = 0; row < 80; ++row) {
    for (uint32_t column = 0; column < 128; ++column) {
      EXPECT_EQ(Wide::offset(row, column, 80), swizzled_offset(row, column, 80));
    }
  }
  EXPECT_EQ(Wide::k_major(0x12340), k_major_descriptor(0x12340));
  EXPECT_EQ(Wide::mn_major(0x12340, 80), mn_major_descriptor(0x12340, 80));
  for (uint32_t k = 0; k < 8; ++k) {
    EXPECT_EQ(Wide::k_major_step(k, 80), k_major_step(k, 80));
    EXPECT_EQ(Wide::mn_major_step(k), mn_major_step(k));
  }
}

// Swizzle modes 1, 2 and 3 are 128, 64 and 32 bytes.
template <uint32_t kRowBytes, uint64_t kMode>
void check_descriptors() {
  using Panels = PanelLayout<kRowBytes>;
  constexpr uint64_t kDescriptor = Panels::mn_major(0x12340, 96);
  static_assert((kDescriptor & 0x3fff) == 0x1234);
  static_assert((kDescriptor >> 16 & 0x3fff) * 16 == Panels::offset(0, Panels::kColumns, 96));
  static_assert((kDescriptor >> 32 & 0x3fff) * 16 == Panels::offset(8, 0, 96));
  static_assert(kDescriptor >> 62 == kMode);
  static_assert(Panels::k_major(0x12340) >> 62 == kMode);
  EXPECT_EQ(Panels::mn_major_step(3), Panels::offset(48, 0, 96));
  EXPECT_EQ(Panels::k_major_step(5, 96), Panels::offset(0, 80, 96));
}

TEST(PanelLayout, DescribesItsPanels) {
  check_descriptors<128, 1>();
  check_descriptors<64, 2>();
  check_descriptors<32, 3>();
}

}  // namespace
}  // namespace flashloom::cuda
