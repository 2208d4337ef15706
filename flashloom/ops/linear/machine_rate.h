#pragma once

#include <dnnl.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace flashloom {

/// Operations a second of one large product by oneDNN with all its threads: the bound that
/// benchmarks compare with. Measured once a program, best of several.
inline double machine_gemm_rate() {
  static const double rate = [] {
    constexpr int64_t kSize = 1536;
    const std::vector<float> a(kSize * kSize, 0.5f);
    const std::vector<float> b(kSize * kSize, 0.25f);
    std::vector<float> c(kSize * kSize);
    double best = 1e30;
    for (int i = 0; i < 8; ++i) {
      const auto start = std::chrono::steady_clock::now();
      dnnl_sgemm('N', 'N', kSize, kSize, kSize, 1, a.data(), kSize, b.data(), kSize, 0, c.data(),
                 kSize);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      best = std::min(best, time.count());
    }
    return 2.0 * kSize * kSize * kSize / best;
  }();
  return rate;
}

}  // namespace flashloom
