#include "flashloom/ops/linear/peak_flops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/test_matrix.h"

namespace flashloom {
namespace {

TEST(PeakFlops, NoProductIsFaster) {
  constexpr int64_t kSize = 480;
  const TestMatrix<> a(kSize, kSize, 1);
  const TestMatrix<> b(kSize, kSize, 2);
  const TestMatrix<> c(kSize, kSize, 3);
  set_thread_count(1);
  double best = 1e30;
  for (int run = 0; run < 8; ++run) {
    const auto start = std::chrono::steady_clock::now();
    gemm(c.view, a.view, b.view);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  const double rate = 2.0 * kSize * kSize * kSize / best;
  const double peak = measure_peak_flops();
  set_thread_count(0);
  EXPECT_LT(rate, 1.02 * peak);  // 0.02: clocks that change between the two
  EXPECT_LT(peak, 1e12);         // a core of 2 x 16 lanes at 6 GHz: 0.4e12
}

TEST(PeakFlops, GrowsWithTheThreads) {
  set_thread_count(1);
  const double one = measure_peak_flops();
  set_thread_count(4);
  const double four = measure_peak_flops();
  set_thread_count(0);
  EXPECT_NEAR(four / one, 4, 1);
}

}  // namespace
}  // namespace flashloom
