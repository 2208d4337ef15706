#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "flashloom/ops/attention/attention_test_case.h"

// Random buckets for tests of attention.

namespace flashloom::attention_test {

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

}  // namespace flashloom::attention_test
