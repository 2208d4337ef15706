#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/attention_test_patterns.h"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// The CPU kernels against the float64 reference: block masks, buckets, explicit positions.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::RandomBlocks;
using attention_test::RandomBuckets;
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
