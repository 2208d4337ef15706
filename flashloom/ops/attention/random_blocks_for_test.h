#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/ops/attention/attention_test_case.h"

namespace flashloom::attention_test {

/// A block mask with full, partial and absent blocks, both ways.
struct RandomBlocks {
  Tensor offsets, columns, partial, column_offsets, rows, transposed_partial;
  std::vector<uint8_t> bits;
  std::vector<std::vector<int>> kinds;  // of (head x block row): -2 absent, -1 full, n partial
  AttentionBlocks blocks;

  RandomBlocks(int64_t queries, int64_t keys, int64_t block_rows, int64_t block_keys, int64_t heads,
               uint64_t seed) {
    RandomSequence random(seed, RandomStream::test);
    const int64_t height = tile_count(queries, block_rows);
    const int64_t width = tile_count(keys, block_keys);
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

  /// Whether the mask keeps a pair of one head.
  bool keeps(int64_t head, int64_t query, int64_t key) const {
    const int64_t height = offsets.view().dim(2) - 1;
    const int64_t h = offsets.view().dim(1) == 1 ? 0 : head;
    const int kind = kinds[static_cast<size_t>(h * height + query / blocks.block_rows)]
                          [static_cast<size_t>(key / blocks.block_keys)];
    if (kind < 0) {
      return kind == -1;
    }
    const int64_t at =
        (kind * blocks.block_rows + query % blocks.block_rows) * (blocks.block_keys / 8) +
        key % blocks.block_keys / 8;
    return ((bits[static_cast<size_t>(at)] >> (key % 8)) & 1) != 0;
  }
};

}  // namespace flashloom::attention_test
