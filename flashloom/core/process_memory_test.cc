#include "flashloom/core/process_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace flashloom {
namespace {

TEST(ProcessMemory, CountsWhatIsTouched) {
  const int64_t before = anonymous_memory_bytes();
  EXPECT_GT(before, 100 << 10);
  std::vector<char> memory(64 << 20);
  std::memset(memory.data(), 1, memory.size());
  const int64_t after = anonymous_memory_bytes();
  EXPECT_NEAR(static_cast<double>(after - before), 64 << 20, 4 << 20);
  EXPECT_EQ(memory[12345], 1);
}

}  // namespace
}  // namespace flashloom
