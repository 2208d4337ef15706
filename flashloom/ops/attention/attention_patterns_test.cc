#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

// The CPU kernels against the float64 reference: block masks, buckets, explicit positions.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::Tensor;

// A block mask with full, partial and absent blocks, both ways.
struct RandomBlocks {
  Tensor offsets, columns, partial, column_offsets, rows, transposed_partial;
  std::vector<uint8_t> bits;
  AttentionBlocks blocks;

  RandomBlocks(int64_t queries, int64_t keys, int64_t block_rows, int64_t block_keys, int64_t heads,
               uint64_t seed) {
    RandomSequence random(seed, RandomStream::test);
    const int64_t height = tile_count(queries, block_rows);
    const int64_t width = tile_count(keys, block_keys);
    std::vector<std::vector<int>> kinds;  // of (head x block row): -2 absent, -1 full, n partial
    std::vector<int32_t> row_values;
    std::vector<int32_t> column_values;
    int partials = 0;
    int64_t entries = 0;
    for (int64_t h = 0; h < heads; ++h) {
      int64_t count = 0;
      for (int64_t r = 0; r < height; ++r) {
        kinds.emplace_back();
        for (int64_t c = 0; c < width; ++c) {
          const uint32_t draw = random.below(3);
          kinds.back().push_back(draw == 0 ? -2 : draw == 1 ? -1 : partials++);
          count += draw == 0 ? 0 : 1;
        }
      }
      entries = std::max(entries, count);
    }
    for (int64_t i = 0; i < partials * block_rows * block_keys / 8; ++i) {
      bits.push_back(static_cast<uint8_t>(random.bits()));
    }
    const auto fill = [&](Tensor& starts, Tensor& indices, Tensor& kind, bool by_row) {
      const int64_t outer = by_row ? height : width;
      const int64_t inner = by_row ? width : height;
      std::vector<int32_t> start_values;
      std::vector<int32_t> index_values(static_cast<size_t>(heads * entries), 0);
      std::vector<int32_t> kind_values(static_cast<size_t>(heads * entries), -1);
      for (int64_t h = 0; h < heads; ++h) {
        int32_t at = 0;
        for (int64_t o = 0; o < outer; ++o) {
          start_values.push_back(at);
          for (int64_t i = 0; i < inner; ++i) {
            const int value =
                by_row ? kinds[static_cast<size_t>(h * height + o)][static_cast<size_t>(i)]
                       : kinds[static_cast<size_t>(h * height + i)][static_cast<size_t>(o)];
            if (value > -2) {
              index_values[static_cast<size_t>(h * entries + at)] = static_cast<int32_t>(i);
              kind_values[static_cast<size_t>(h * entries + at)] = value;
              ++at;
            }
          }
        }
        start_values.push_back(at);
      }
      starts = Tensor::index({1, heads, outer + 1}, start_values);
      indices = Tensor::index({1, heads, entries}, index_values);
      kind = Tensor::index({1, heads, entries}, kind_values);
    };
    fill(offsets, columns, partial, true);
    fill(column_offsets, rows, transposed_partial, false);
    blocks = {.block_rows = block_rows,
              .block_keys = block_keys,
              .row_offsets = offsets,
              .columns = columns,
              .partial = partial,
              .bits = ConstTensorView(bits.data(), {partials, block_rows, block_keys / 8}),
              .column_offsets = column_offsets,
              .rows = rows,
              .transposed_partial = transposed_partial};
  }
};

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
