#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <numeric>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/gemv/gemv.h"

namespace flashloom {
namespace {

/// Matrices together that no cache holds: 256 MB.
constexpr int64_t kBytes = 256 << 20;

/// Bytes a second of merely adding up memory: the bound.
double stream_rate(const std::vector<float>& memory) {
  double best = 0;
  for (int run = 0; run < 3; ++run) {
    std::atomic<float> sink = 0;
    const auto begin = std::chrono::steady_clock::now();
    parallel_for(256, [&](int64_t part) {
      const size_t size = memory.size() / 256;
      const float* values = memory.data() + static_cast<size_t>(part) * size;
      float sums[64] = {};
      for (size_t i = 0; i + 64 <= size; i += 64) {
        for (size_t j = 0; j < 64; ++j) {
          sums[j] += values[i + j];
        }
      }
      sink = std::accumulate(std::begin(sums), std::end(sums), 0.0f);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(memory.size() * sizeof(float)) / seconds.count());
  }
  return best;
}

void memory_bound(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const int64_t columns = state.range(1);
  const int64_t copies = std::max<int64_t>(1, kBytes / 4 / (rows * columns));
  const std::vector<float> matrices(static_cast<size_t>(copies * rows * columns), 0.5f);
  const std::vector<float> x(static_cast<size_t>(columns), 1.0f);
  std::vector<float> y(static_cast<size_t>(rows));
  for (auto _ : state) {
    for (int64_t i = 0; i < copies; ++i) {
      gemv(TensorView(y.data(), {rows}),
           ConstTensorView(matrices.data() + i * rows * columns, {rows, columns}),
           ConstTensorView(x.data(), {columns}));
    }
  }
  const auto bytes = static_cast<double>(matrices.size() * sizeof(float));
  state.counters["bytes/s"] = benchmark::Counter(
      bytes, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.counters["share of memory"] = benchmark::Counter(
      bytes / stream_rate(matrices), benchmark::Counter::kIsIterationInvariantRate);
}

BENCHMARK(memory_bound)
    ->Args({576, 576})
    ->Args({1536, 576})
    ->Args({576, 1536})
    ->Args({49152, 576})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashloom
