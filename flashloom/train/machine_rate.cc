#include "flashloom/train/machine_rate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/ops/linear/gemm.h"

namespace flashloom {

double measure_gemm_rate() {
  constexpr int64_t kSize = 1024;
  constexpr int kRuns = 4;  // the first warms up
  std::vector<float> values(3 * kSize * kSize);
  RandomSequence random(0, RandomStream::test);
  for (float& value : values) {
    value = random.uniform(-1, 1);
  }
  const auto matrix = [&](int64_t i) {
    return TensorView(values.data() + i * kSize * kSize, {kSize, kSize});
  };
  double best = 1e30;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    gemm(matrix(0), matrix(1), matrix(2), {.transpose_b = true});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return 2.0 * kSize * kSize * kSize / best;
}

}  // namespace flashloom
