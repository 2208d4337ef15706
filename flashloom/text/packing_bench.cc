#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/text/packing.h"

namespace flashloom {
namespace {

// Log-normal lengths with mean near 190 tokens, cut at 2048: the shape of instruction data.
std::vector<int64_t> instruction_lengths(int64_t count) {
  RandomSequence random(1, RandomStream::test);
  std::vector<int64_t> lengths(static_cast<size_t>(count));
  for (auto& length : lengths) {
    length = std::min<int64_t>(2048, 1 + std::llround(std::exp(4.8 + 0.95 * random.normal())));
  }
  return lengths;
}

// Arguments: documents, window. Reports documents a second and the share of the capacity
// filled.
void pack(benchmark::State& state) {
  const auto lengths = instruction_lengths(state.range(0));
  int64_t bins = 0;
  for (auto _ : state) {
    bins = pack_documents(lengths, {.capacity = 2048, .window = state.range(1)}, 0).bins();
  }
  const auto tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  state.counters["filled"] = static_cast<double>(tokens) / (2048.0 * static_cast<double>(bins));
  state.counters["documents/s"] = benchmark::Counter(
      static_cast<double>(state.range(0)) * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate);
}

BENCHMARK(pack)
    ->ArgsProduct({{100000, 1000000}, {256, 4096, 1000000}})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashloom
