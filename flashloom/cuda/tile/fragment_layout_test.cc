#include "flashloom/cuda/tile/fragment_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace flashloom::cuda {
namespace {

// The examples of the PTX ISA: thread 0 holds (0, 0), (0, 1), (8, 0), (8, 1), then column 8; thread
// 5 of a warp starts at row 1, column 2; the second warp at row 16.
static_assert(accumulator_place(0, 0) == TilePlace{0, 0});
static_assert(accumulator_place(0, 1) == TilePlace{0, 1});
static_assert(accumulator_place(0, 2) == TilePlace{8, 0});
static_assert(accumulator_place(0, 4) == TilePlace{0, 8});
static_assert(accumulator_place(5, 0) == TilePlace{1, 2});
static_assert(accumulator_place(32, 0) == TilePlace{16, 0});
static_assert(accumulator_place(127, 127) == TilePlace{63, 255});

TEST(FragmentLayout, AccumulatorsHoldEveryElementOnce) {
  for (uint32_t columns = 32; columns <= 256; columns += 16) {
    std::set<std::pair<uint32_t, uint32_t>> places;
    for (uint32_t thread = 0; thread < 128; ++thread) {
      for (uint32_t index = 0; index < columns / 2; ++index) {
        const TilePlace place = accumulator_place(thread, index);
        EXPECT_LT(place.row, 64u);
        EXPECT_LT(place.column, columns);
        places.insert({place.row, place.column});
      }
    }
    EXPECT_EQ(places.size(), 64 * columns);
  }
}

// What lets P go from the scores' accumulator to the next product without a shuffle: registers
// 8 s ... 8 s + 7 of an accumulator, packed in pairs, are the operand of step s.
TEST(FragmentLayout, PackedAccumulatorsAreOperands) {
  for (uint32_t thread = 0; thread < 128; ++thread) {
    for (uint32_t step = 0; step < 8; ++step) {
      for (uint32_t word = 0; word < 4; ++word) {
        const TilePlace operand = operand_place(thread, word);
        const TilePlace first = accumulator_place(thread, 8 * step + 2 * word);
        const TilePlace second = accumulator_place(thread, 8 * step + 2 * word + 1);
        EXPECT_EQ(first, (TilePlace{operand.row, operand.column + 16 * step}));
        EXPECT_EQ(second, (TilePlace{operand.row, operand.column + 16 * step + 1}));
      }
    }
  }
}

// Lane l of stmatrix gives the row that lanes 4 (l % 8) to 4 (l % 8) + 3 hold in register l / 8.
TEST(FragmentLayout, MatrixRowsAreTheRowsOfOperands) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const TilePlace row = matrix_row_place(lane);
    for (uint32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(operand_place(lane % 8 * 4 + i, lane / 8),
                (TilePlace{row.row, row.column + 2 * i}));
    }
  }
}

// All 32 rows of a 16 x 16 tile in eight different 16-byte banks at a time.
TEST(FragmentLayout, MatrixRowsMeetNoBankTwice) {
  for (uint32_t matrix = 0; matrix < 4; ++matrix) {
    std::set<uint32_t> banks;
    for (uint32_t lane = 8 * matrix; lane < 8 * matrix + 8; ++lane) {
      const TilePlace row = matrix_row_place(lane);
      banks.insert(swizzled_offset(row.row, row.column, 64) % 128 / 16);
    }
    EXPECT_EQ(banks.size(), 8u);
  }
}

}  // namespace
}  // namespace flashloom::cuda
