#include "flashloom/core/memory_bandwidth.h"

#include <gtest/gtest.h>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

TEST(MemoryBandwidth, IsThatOfAMachineOfThisDecade) {
  const double rate = measure_copy_bytes_per_second(int64_t{1} << 20);
  EXPECT_GT(rate, 1e8);
  EXPECT_LT(rate, 1e14);
}

TEST(MemoryBandwidth, RejectsAnEmptyWorkingSet) {
  EXPECT_THROW(measure_copy_bytes_per_second(0), InvalidArgument);
  EXPECT_THROW(measure_copy_bytes_per_second(-4), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
