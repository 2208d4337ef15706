#include "flashloom/core/memory_bandwidth.h"

#include <gtest/gtest.h>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"

namespace flashloom {
namespace {

TEST(MemoryBandwidth, IsThatOfAMachineOfThisDecade) {
  set_thread_count(1);  // two threads that a busy machine lets run in turn measure their waits
  const double rate = measure_copy_bytes_per_second(int64_t{1} << 20);
  set_thread_count(0);
  EXPECT_GT(rate, 1e7);
  EXPECT_LT(rate, 1e14);
}

TEST(MemoryBandwidth, RejectsAnEmptyWorkingSet) {
  EXPECT_THROW(measure_copy_bytes_per_second(0), InvalidArgument);
  EXPECT_THROW(measure_copy_bytes_per_second(-4), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
