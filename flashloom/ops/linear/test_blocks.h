#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "flashloom/core/block_format.h"
#include "flashloom/core/philox.h"

namespace flashloom {

/// Blocks of kElements bytes behind an f32 scale, of which each group can be decoded alone.
template <int64_t kElements, int64_t kGroup>
const BlockFormat& test_block_format() {
  static const BlockFormat kFormat = {
      .name = "test",
      .block_elements = kElements,
      .block_bytes = 4 + kElements,
      .group_elements = kGroup,
      .decode =
          [](const std::byte* row, int64_t first, int64_t count, float* out) {
            for (int64_t i = first; i < first + count; ++i) {
              const std::byte* block = row + i / kElements * (4 + kElements);
              float scale;
              std::memcpy(&scale, block, sizeof(scale));
              *out++ = scale * static_cast<float>(static_cast<int8_t>(block[4 + i % kElements]));
            }
          },
  };
  return kFormat;
}

/// A matrix of random blocks, numbers within [-1, 1].
struct TestBlocks {
  TestBlocks(int64_t rows, int64_t columns, uint64_t seed, const BlockFormat& format) {
    view = {.format = &format, .rows = rows, .columns = columns};
    memory.resize(static_cast<size_t>(view.bytes()));
    RandomSequence random(seed, RandomStream::test);
    for (std::byte& byte : memory) {
      byte = static_cast<std::byte>(random.bits() & 255);
    }
    for (size_t at = 0; at < memory.size(); at += static_cast<size_t>(format.block_bytes)) {
      const float scale = random.uniform(0.2f, 1) / 128;
      std::memcpy(memory.data() + at, &scale, sizeof(scale));
    }
    view.data = memory.data();
  }

  TestBlocks(const TestBlocks& other) : memory(other.memory), view(other.view) {
    view.data = memory.data();
  }

  TestBlocks& operator=(const TestBlocks&) = delete;

  std::vector<std::byte> memory;
  BlockMatrix view;
};

}  // namespace flashloom
