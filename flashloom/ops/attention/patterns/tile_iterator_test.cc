#include "flashloom/ops/attention/patterns/tile_iterator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "flashloom/core/philox.h"

namespace flashloom {
namespace {

constexpr TileShape kShape = {4, 8};

// A geometry that owns its tables.
struct Case {
  HeadGeometry geometry;
  std::vector<int32_t> query_positions, key_positions, query_offsets, key_offsets;
  std::vector<int32_t> block_offsets, block_entries, block_partial;
  std::vector<int32_t> transposed_offsets, transposed_entries, transposed_partial;
  std::vector<uint8_t> bits;
};

int tiles(int count, int size) {
  return (count + size - 1) / size;
}

// The entry of the mask that holds the pair: -2 none, -1 full, else the partial block.
int block_entry(const HeadGeometry& geometry, int64_t outer, int64_t inner) {
  const GeometryBlocks& blocks = geometry.blocks;
  for (int e = blocks.offsets[outer / geometry.outer_block];
       e < blocks.offsets[outer / geometry.outer_block + 1]; ++e) {
    if (blocks.entries[e] == inner / geometry.inner_block) {
      return blocks.partial != nullptr ? blocks.partial[e] : -1;
    }
  }
  return -2;
}

// Visible but for the bits of partial blocks.
bool visible(const HeadGeometry& geometry, int64_t outer, int64_t inner) {
  return positions_visible(geometry, outer, inner) &&
         (geometry.outer_block == 0 || block_entry(geometry, outer, inner) >= -1);
}

// Walks all runs of all tiles and compares with the pairs themselves. Returns the tiles that were
// enumerated without need.
int check_against_pairs(const HeadGeometry& geometry,
                        std::set<std::pair<int, int>>* enumerated = nullptr) {
  const int outer_size = geometry.transposed ? kShape.keys : kShape.rows;
  const int inner_size = geometry.transposed ? kShape.rows : kShape.keys;
  int surplus = 0;
  for (int o = 0; o < tiles(geometry.outer.count, outer_size); ++o) {
    std::vector<int> seen(static_cast<size_t>(tiles(geometry.inner.count, inner_size)), 0);
    int previous = -1;
    TileIterator runs(geometry, o, kShape);
    for (TileRun run; runs.next(run);) {
      EXPECT_GT(run.count, 0);
      for (int i = run.first; i < run.first + run.count; ++i) {
        EXPECT_GT(i, previous) << "tiles ascend and come once";
        previous = i;
        EXPECT_LT(i, static_cast<int>(seen.size()));
        seen[static_cast<size_t>(i)] = 1;
        if (enumerated != nullptr) {
          enumerated->insert(geometry.transposed ? std::pair(i, o) : std::pair(o, i));
        }
        int pairs = 0;
        int kept = 0;
        bool cut_outer = (o + 1) * outer_size > geometry.outer.count;
        bool cut_inner = (i + 1) * inner_size > geometry.inner.count;
        for (int a = o * outer_size; a < std::min((o + 1) * outer_size, geometry.outer.count);
             ++a) {
          for (int b = i * inner_size; b < std::min((i + 1) * inner_size, geometry.inner.count);
               ++b) {
            ++pairs;
            kept += visible(geometry, a, b) ? 1 : 0;
          }
        }
        surplus += kept == 0 ? 1 : 0;
        const uint32_t checks = run.flags & (kRunPositions | kRunIndex);
        EXPECT_TRUE(checks != 0 || kept == pairs) << "tile " << o << ", " << i;
        EXPECT_TRUE(checks == 0 || kept < pairs || geometry.exclude_self || geometry.buckets > 0 ||
                    !is_affine(geometry))
            << "a full tile is not checked";
        if (geometry.transposed) {
          std::swap(cut_outer, cut_inner);
        }
        EXPECT_EQ((run.flags & kRunRowBounds) != 0, cut_outer);
        EXPECT_EQ((run.flags & kRunBounds) != 0, cut_inner);
        const int partial =
            geometry.outer_block > 0 ? block_entry(geometry, o * outer_size, i * inner_size) : -1;
        EXPECT_EQ((run.flags & kRunBlockBits) != 0, partial >= 0);
        EXPECT_EQ(run.partial, std::max(partial, -1));
        if ((run.flags & kRunGated) != 0) {
          EXPECT_EQ(run.flags, kRunGated);
          EXPECT_TRUE(geometry.gated);
        }
      }
    }
    for (size_t i = 0; i < seen.size(); ++i) {
      if (seen[i] == 0) {
        for (int a = o * outer_size; a < std::min((o + 1) * outer_size, geometry.outer.count);
             ++a) {
          for (int b = static_cast<int>(i) * inner_size;
               b < std::min((static_cast<int>(i) + 1) * inner_size, geometry.inner.count); ++b) {
            EXPECT_FALSE(visible(geometry, a, b)) << "pair " << a << ", " << b << " is missed";
          }
        }
      }
    }
  }
  return surplus;
}

int check_both_ways(const HeadGeometry& geometry, bool exact) {
  std::set<std::pair<int, int>> forward;
  std::set<std::pair<int, int>> backward;
  const int surplus = check_against_pairs(geometry, &forward) +
                      check_against_pairs(transposed(geometry), &backward);
  if (exact) {
    EXPECT_EQ(surplus, 0);
    EXPECT_EQ(forward, backward);
  }
  return surplus;
}

TEST(TileIterator, WindowsAreExact) {
  RandomSequence random(1, RandomStream::test);
  for (int round = 0; round < 400; ++round) {
    HeadGeometry geometry;
    geometry.outer.count = static_cast<int32_t>(random.below(40));
    geometry.inner.count = static_cast<int32_t>(random.below(60));
    geometry.outer.start = static_cast<int64_t>(random.below(60)) - 30;
    geometry.inner.start = static_cast<int64_t>(random.below(20));
    geometry.gated = random.below(2) == 0;
    if (random.below(3) > 0) {
      geometry.low = -static_cast<int64_t>(random.below(20));
    }
    if (random.below(3) > 0) {
      geometry.high = static_cast<int64_t>(random.below(20));
    }
    check_both_ways(geometry, true);
  }
}

TEST(TileIterator, CausalTakesTwoRunsOfAFullRow) {
  HeadGeometry geometry;
  geometry.outer.count = 64;
  geometry.inner.count = 64;
  geometry.high = 0;
  TileIterator runs(geometry, 15, kShape);
  TileRun run;
  ASSERT_TRUE(runs.next(run));
  EXPECT_EQ(run.first, 0);
  EXPECT_EQ(run.count, 7);
  EXPECT_EQ(run.flags, kRunFull);
  ASSERT_TRUE(runs.next(run));
  EXPECT_EQ(run.first, 7);
  EXPECT_EQ(run.count, 1);
  EXPECT_EQ(run.flags, kRunPositions);
  EXPECT_FALSE(runs.next(run));
}

TEST(TileIterator, WindowsWithoutSelfMissNoPair) {
  RandomSequence random(2, RandomStream::test);
  for (int round = 0; round < 300; ++round) {
    HeadGeometry geometry;
    geometry.outer.count = static_cast<int32_t>(1 + random.below(40));
    geometry.inner.count = static_cast<int32_t>(1 + random.below(60));
    geometry.outer.start = static_cast<int64_t>(random.below(30)) - 10;
    geometry.exclude_self = true;
    if (random.below(2) > 0) {
      geometry.high = static_cast<int64_t>(random.below(3));
    }
    if (random.below(2) > 0) {
      geometry.low = -static_cast<int64_t>(random.below(12));
    }
    check_both_ways(geometry, false);
  }
}

std::vector<int32_t> ascending(RandomSequence& random, int count, int step) {
  std::vector<int32_t> values;
  int32_t value = static_cast<int32_t>(random.below(5));
  for (int i = 0; i < count; ++i) {
    values.push_back(value);
    value += static_cast<int32_t>(random.below(static_cast<uint32_t>(step))) + 1;
  }
  return values;
}

void set_positions(Case& data, RandomSequence& random) {
  HeadGeometry& geometry = data.geometry;
  geometry.outer.count = static_cast<int32_t>(1 + random.below(40));
  geometry.inner.count = static_cast<int32_t>(1 + random.below(60));
  data.query_positions = ascending(random, geometry.outer.count, 4);
  data.key_positions = ascending(random, geometry.inner.count, 3);
  for (uint32_t pad = random.below(4); pad > 0; --pad) {
    if (pad < data.key_positions.size() && pad < data.query_positions.size()) {
      data.query_positions[data.query_positions.size() - pad] = kPaddingPosition;
      data.key_positions[data.key_positions.size() - pad] = kPaddingPosition;
    }
  }
  geometry.outer.positions = data.query_positions.data();
  geometry.inner.positions = data.key_positions.data();
}

TEST(TileIterator, CausalOverExplicitPositionsIsExact) {
  RandomSequence random(3, RandomStream::test);
  for (int round = 0; round < 300; ++round) {
    Case data;
    set_positions(data, random);
    data.geometry.high = random.below(2) == 0 ? 0 : data.geometry.high;
    check_both_ways(data.geometry, true);
  }
}

TEST(TileIterator, WindowsOverExplicitPositionsMissNoPair) {
  RandomSequence random(4, RandomStream::test);
  for (int round = 0; round < 300; ++round) {
    Case data;
    set_positions(data, random);
    data.geometry.low = -static_cast<int64_t>(random.below(30));
    data.geometry.high = static_cast<int64_t>(random.below(10));
    data.geometry.exclude_self = random.below(2) == 0;
    check_both_ways(data.geometry, false);
  }
}

TEST(TileIterator, BucketsMissNoPair) {
  RandomSequence random(5, RandomStream::test);
  for (int round = 0; round < 300; ++round) {
    Case data;
    const auto buckets = static_cast<int>(1 + random.below(5));
    const bool aligned = round % 2 == 0;
    const auto fill = [&](std::vector<int32_t>& positions, std::vector<int32_t>& offsets,
                          int tile) {
      offsets.push_back(0);
      for (int n = 0; n < buckets; ++n) {
        std::vector<int32_t> own = ascending(random, static_cast<int>(random.below(14)), 5);
        while (aligned && own.size() % static_cast<size_t>(tile) != 0) {
          own.push_back(kPaddingPosition);
        }
        positions.insert(positions.end(), own.begin(), own.end());
        offsets.push_back(static_cast<int32_t>(positions.size()));
      }
    };
    fill(data.query_positions, data.query_offsets, kShape.rows);
    fill(data.key_positions, data.key_offsets, kShape.keys);
    HeadGeometry& geometry = data.geometry;
    geometry.buckets = buckets;
    geometry.outer = {static_cast<int32_t>(data.query_positions.size()), 0,
                      data.query_positions.data(), data.query_offsets.data()};
    geometry.inner = {static_cast<int32_t>(data.key_positions.size()), 0, data.key_positions.data(),
                      data.key_offsets.data()};
    geometry.high = 0;
    geometry.exclude_self = random.below(2) == 0;
    const int surplus = check_both_ways(geometry, aligned && !geometry.exclude_self);
    EXPECT_TRUE(!aligned || geometry.exclude_self || surplus == 0);
  }
}

void set_blocks(Case& data, RandomSequence& random, int block_rows, int block_keys) {
  HeadGeometry& geometry = data.geometry;
  const int rows = tiles(geometry.outer.count, block_rows);
  const int columns = tiles(geometry.inner.count, block_keys);
  std::vector<std::vector<int>> kind(static_cast<size_t>(rows),
                                     std::vector<int>(static_cast<size_t>(columns), -2));
  int partials = 0;
  for (auto& row : kind) {
    for (int& entry : row) {
      const uint32_t draw = random.below(4);
      entry = draw == 0 ? -2 : draw == 1 ? partials++ : -1;
    }
  }
  data.block_offsets.push_back(0);
  for (const auto& row : kind) {
    for (size_t c = 0; c < row.size(); ++c) {
      if (row[c] >= -1) {
        data.block_entries.push_back(static_cast<int32_t>(c));
        data.block_partial.push_back(row[c]);
      }
    }
    data.block_offsets.push_back(static_cast<int32_t>(data.block_entries.size()));
  }
  data.transposed_offsets.push_back(0);
  for (int c = 0; c < columns; ++c) {
    for (size_t r = 0; r < kind.size(); ++r) {
      if (kind[r][static_cast<size_t>(c)] >= -1) {
        data.transposed_entries.push_back(static_cast<int32_t>(r));
        data.transposed_partial.push_back(kind[r][static_cast<size_t>(c)]);
      }
    }
    data.transposed_offsets.push_back(static_cast<int32_t>(data.transposed_entries.size()));
  }
  geometry.outer_block = block_rows;
  geometry.inner_block = block_keys;
  const auto entries = static_cast<int32_t>(data.block_entries.size());
  geometry.blocks = {data.block_offsets.data(), data.block_entries.data(),
                     data.block_partial.data(), entries};
  geometry.transposed_blocks = {data.transposed_offsets.data(), data.transposed_entries.data(),
                                data.transposed_partial.data(), entries};
}

TEST(TileIterator, BlockMasksWithinWindowsAreExact) {
  RandomSequence random(6, RandomStream::test);
  for (int round = 0; round < 300; ++round) {
    Case data;
    data.geometry.outer.count = static_cast<int32_t>(1 + random.below(60));
    data.geometry.inner.count = static_cast<int32_t>(1 + random.below(90));
    data.geometry.outer.start = static_cast<int64_t>(random.below(20));
    data.geometry.high = random.below(2) == 0 ? 0 : data.geometry.high;
    data.geometry.low = random.below(2) == 0 ? -17 : data.geometry.low;
    data.geometry.gated = true;
    set_blocks(data, random, 8, 16);
    check_both_ways(data.geometry, true);
  }
}

TEST(TileIterator, NeighbouringFullBlocksJoin) {
  Case data;
  data.geometry.outer.count = 8;
  data.geometry.inner.count = 64;
  data.block_offsets = {0, 3};
  data.block_entries = {0, 1, 3};
  data.geometry.outer_block = 8;
  data.geometry.inner_block = 16;
  data.geometry.blocks = {data.block_offsets.data(), data.block_entries.data(), nullptr, 3};
  TileIterator runs(data.geometry, 0, kShape);
  TileRun run;
  ASSERT_TRUE(runs.next(run));
  EXPECT_EQ(run.first, 0);
  EXPECT_EQ(run.count, 4);
  ASSERT_TRUE(runs.next(run));
  EXPECT_EQ(run.first, 6);
  EXPECT_EQ(run.count, 2);
  EXPECT_FALSE(runs.next(run));
}

constexpr int visited_tiles(const HeadGeometry& geometry, int outer_tile) {
  TileIterator runs(geometry, outer_tile, kShape);
  int count = 0;
  for (TileRun run = {}; runs.next(run);) {
    count += run.count;
  }
  return count;
}

constexpr HeadGeometry window_geometry() {
  HeadGeometry geometry;
  geometry.outer.count = 64;
  geometry.inner.count = 64;
  geometry.low = -8;
  geometry.high = 0;
  return geometry;
}

static_assert(visited_tiles(window_geometry(), 8) == 2, "schedules are known to the compiler");

}  // namespace
}  // namespace flashloom
