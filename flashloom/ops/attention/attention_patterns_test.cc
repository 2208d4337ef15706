#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// The CPU kernels against the float64 reference: block masks, buckets, explicit positions.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::RandomBlocks;
using attention_test::Tensor;

TEST(AttentionPatterns, BlockMasksEqualTheReference) {
  const std::array<int64_t, 2> sizes[] = {{16, 32}, {64, 64}, {128, 128}, {20, 40}};
  for (const auto& [rows, keys] : sizes) {
    for (const int64_t heads : {1, 4}) {
      for (const int64_t right : {-1, 0}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(keys) + ", heads " +
                     std::to_string(heads));
        const RandomBlocks mask(200, 230, rows, keys, heads, 5);
        Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 200, .keys = 230};
        call.options.visibility.right = right;
        call.options.blocks = mask.blocks;
        call.expect_equal_to_reference();
      }
    }
  }
}

// Rows sorted by bucket with ascending positions in each, padded with 2^31 - 1.
struct RandomBuckets {
  Tensor query, key, query_offsets, key_offsets, output;

  RandomBuckets(int64_t batch, int64_t heads, int64_t key_heads, int64_t queries, int64_t keys) {
    RandomSequence random(9, RandomStream::test);
    std::vector<int32_t> outputs;
    const auto fill = [&](int64_t count, int64_t rows, Tensor& positions, Tensor& offsets,
                          bool with_outputs) {
      std::vector<int32_t> position_values;
      std::vector<int32_t> offset_values;
      for (int64_t n = 0; n < count; ++n) {
        std::array<std::vector<int32_t>, 3> buckets;
        for (int32_t i = 0; i < rows - 6; ++i) {
          buckets[random.below(3)].push_back(i);
        }
        int32_t used = 0;
        for (size_t b = 0; b < 3; ++b) {
          offset_values.push_back(used);
          if (b < 2 || rows > 0) {
            buckets[b].insert(buckets[b].end(), 2, 0x7fffffff);
          }
          for (const int32_t position : buckets[b]) {
            position_values.push_back(position);
            if (with_outputs) {
              outputs.push_back(position == 0x7fffffff ? -1 : position);
            }
            ++used;
          }
        }
        offset_values.push_back(used);
      }
      const int64_t group = count / batch;
      positions = Tensor::index({batch, group, rows}, position_values);
      offsets = Tensor::index({batch, group, 4}, offset_values);
    };
    fill(batch * heads, queries, query, query_offsets, true);
    fill(batch * key_heads, keys, key, key_offsets, false);
    output = Tensor::index({batch, heads, queries}, outputs);
  }
};

TEST(AttentionPatterns, BucketsPositionsAndOutputRowsEqualTheReference) {
  const RandomBuckets rows(2, 4, 2, 150, 170);
  for (const bool exclude_self : {false, true}) {
    Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 150, .keys = 170};
    call.options.visibility.right = 0;
    call.options.positions = {.query = rows.query,
                              .key = rows.key,
                              .output_index = rows.output,
                              .query_bucket_offsets = rows.query_offsets,
                              .key_bucket_offsets = rows.key_offsets,
                              .exclude_self = exclude_self};
    call.with_dlse = true;
    call.with_entropy = true;
    call.expect_equal_to_reference();
  }
}

TEST(AttentionPatterns, DroppedRowsEqualTheReference) {
  // Query and key dropping: ascending positions with gaps, counts, no buckets.
  std::vector<int32_t> positions;
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 100; ++i) {
      positions.push_back(3 * i + (i * i + n) % 3);
    }
  }
  const Tensor index = Tensor::index({1, 2, 100}, positions);
  const Tensor counts = Tensor::index({1, 2}, {100, 61});
  Case call = {.heads = 2, .key_heads = 2, .queries = 100, .keys = 100};
  call.options.visibility = {.left = 77, .right = 0};
  call.options.positions = {
      .query = index, .key = index, .query_count = counts, .key_count = counts};
  call.expect_equal_to_reference();
}

}  // namespace
}  // namespace flashloom
