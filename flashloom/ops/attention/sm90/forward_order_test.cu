#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/ops/attention/attention_test_run.cuh"
#include "flashloom/ops/attention/sm90/forward_launch.cuh"

// The order of a block mask's tiles: every tile once, whatever the lists hold, long ones first.

namespace flashloom::sm90 {
namespace {

struct Lists {
  int32_t heads, rows, keys;     // query heads of one sequence; blocks of 128 x 128
  std::vector<int32_t> lengths;  // (heads, rows)
  std::vector<int32_t> offsets;  // (heads, rows + 1)
  int32_t entries = 0;
};

Lists random_lists(int32_t heads, int32_t rows, int32_t keys, bool uneven, uint64_t seed) {
  Lists lists = {heads, rows, keys, {}, {}};
  RandomSequence random(seed, RandomStream::test);
  for (int32_t h = 0; h < heads; ++h) {
    int32_t end = 0;
    for (int32_t r = 0; r < rows; ++r) {
      const bool all = uneven && random.below(40) == 0;
      const auto width = static_cast<uint32_t>(uneven ? (keys + 15) / 16 : keys);
      lists.lengths.push_back(all ? keys : static_cast<int32_t>(random.below(width + 1)));
      lists.offsets.push_back(end);
      end += lists.lengths.back();
    }
    lists.offsets.push_back(end);
    lists.entries = std::max(lists.entries, end);
  }
  return lists;
}

std::vector<int32_t> order_of(const Lists& lists, int32_t section, int32_t walkers) {
  ForwardParams params = {};
  params.problem.batch = 1;
  params.problem.heads = lists.heads;
  params.problem.heads_per_key = 1;
  params.problem.query_length = 128 * lists.rows;
  params.problem.key_length = 128 * lists.keys;
  params.problem.left = params.problem.right = kUnbounded;
  params.row_tiles = lists.rows;
  params.tiles = lists.heads * lists.rows;
  int32_t* offsets = nullptr;
  int32_t* order = nullptr;
  const size_t bytes = lists.offsets.size() * sizeof(int32_t);
  cuda::check(cudaMalloc(&offsets, bytes), "cudaMalloc");
  cuda::check(cudaMalloc(&order, (lists.lengths.size() + 1) * sizeof(int32_t)), "cudaMalloc");
  cuda::check(cudaMemcpy(offsets, lists.offsets.data(), bytes, cudaMemcpyHostToDevice), "copy");
  cuda::check(cudaMemset(order, 0xff, (lists.lengths.size() + 1) * sizeof(int32_t)), "set");
  params.counter = order + lists.lengths.size();
  params.rule.blocks.block_rows = params.rule.blocks.block_keys = 128;
  params.rule.blocks.offsets = {offsets, 0, lists.rows + 1};
  params.rule.blocks.entry_count = lists.entries;
  order_lists(params, 128, section, walkers, order, nullptr);
  std::vector<int32_t> result(lists.lengths.size() + 1);
  cuda::check(
      cudaMemcpy(result.data(), order, result.size() * sizeof(int32_t), cudaMemcpyDeviceToHost),
      "copy");
  cudaFree(offsets);
  cudaFree(order);
  EXPECT_EQ(result.back(), 0) << "the counter";
  result.pop_back();
  return result;
}

TEST(ForwardOrder, TakesEveryTileOnceAndLongListsFirst) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = attention_test::fresh_seed();

  const struct {
    int32_t heads, rows, keys, section, walkers;
  } cases[] = {{1, 1, 1, 1, 1},         {32, 64, 64, 8, 264},   {7, 33, 40, 3, 132},
               {5, 1000, 1500, 2, 264}, {40, 200, 30, 16, 264}, {3, 64, 0, 2, 264}};

  for (const auto& c : cases) {
    for (const bool uneven : {false, true}) {
      const Lists lists = random_lists(c.heads, c.rows, c.keys, uneven, seed + c.rows);
      const std::vector<int32_t> order = order_of(lists, c.section, c.walkers);
      std::vector<int32_t> sorted = order;
      std::sort(sorted.begin(), sorted.end());
      for (size_t i = 0; i < sorted.size(); ++i) {
        ASSERT_EQ(sorted[i], static_cast<int32_t>(i)) << c.heads << " heads, " << c.rows << " rows";
      }
      // Which lists are too long for their section; lists of more than 1023 tiles are compared in
      // classes, so that neighbours may change places.
      int64_t all = 0;
      for (const int32_t length : lists.lengths) {
        all += length;
      }
      const int32_t tiles = c.section * c.rows;
      const double longest =
          static_cast<double>(all) / static_cast<double>(order.size()) * tiles / c.walkers;
      const int32_t slack = c.keys * 2 >= 1024 ? c.keys / 500 + 1 : 0;
      const auto length_at = [&](size_t i) { return lists.lengths[static_cast<size_t>(order[i])]; };
      size_t i = 0;
      while (i < order.size() && length_at(i) > longest * 0.999 - slack) {
        ++i;
      }
      for (; i < order.size(); ++i) {
        EXPECT_LE(length_at(i), longest * 1.001 + slack) << i;
        if (i > 0 && order[i - 1] / tiles == order[i] / tiles) {
          EXPECT_LE(length_at(i), length_at(i - 1) + slack) << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace flashloom::sm90
