#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/text/packing.h"

namespace flashloom {
namespace {

constexpr int64_t kLongest = 2048;

enum Distribution : int64_t { kLogNormal, kUniform, kFromFile };

// Log-normal lengths with mean near 190 tokens, cut at 2048: the shape of instruction data.
std::vector<int64_t> instruction_lengths(int64_t count) {
  RandomSequence random(1, RandomStream::test);
  std::vector<int64_t> lengths(static_cast<size_t>(count));
  for (auto& length : lengths) {
    length = std::min<int64_t>(2048, 1 + std::llround(std::exp(4.8 + 0.95 * random.normal())));
  }
  return lengths;
}

std::vector<int64_t> lengths_of(Distribution distribution, int64_t count) {
  if (distribution == kLogNormal) {
    return instruction_lengths(count);
  }
  std::vector<int64_t> lengths;
  if (distribution == kUniform) {
    RandomSequence random(2, RandomStream::test);
    for (int64_t i = 0; i < count; ++i) {
      lengths.push_back(1 + random.below(kLongest));
    }
    return lengths;
  }
  const char* file = std::getenv("FLASHLOOM_LENGTHS");
  std::ifstream stream(file != nullptr ? file : "");
  for (int64_t length = 0; stream >> length;) {
    lengths.push_back(std::min(length, kLongest));
  }
  return lengths;
}

// How well a distribution packs. Arguments: distribution (0 log-normal, 1 uniform, 2 the numbers in
// the file that FLASHLOOM_LENGTHS names), capacity. Counters, as shares of all positions: padding
// of one document a row of `capacity`; of rows of eight documents that are as long as the longest
// of them; and when packed; bins over the least number that could hold the tokens.
void quality(benchmark::State& state) {
  const auto lengths = lengths_of(static_cast<Distribution>(state.range(0)), 100000);
  const int64_t capacity = state.range(1);
  if (lengths.empty()) {
    state.SkipWithError("FLASHLOOM_LENGTHS names no file of numbers");
    return;
  }
  PackingPlan plan;
  for (auto _ : state) {
    plan = pack_documents(lengths, {.capacity = capacity}, 0);
  }
  const auto tokens =
      static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}));
  const auto count = static_cast<double>(lengths.size());
  constexpr size_t kRows = 8;
  double rows = 0;
  for (size_t i = 0; i < lengths.size(); i += kRows) {
    const size_t end = std::min(lengths.size(), i + kRows);
    const auto longest = *std::max_element(lengths.begin() + static_cast<ptrdiff_t>(i),
                                           lengths.begin() + static_cast<ptrdiff_t>(end));
    rows += static_cast<double>(end - i) * static_cast<double>(longest);
  }
  const auto positions = static_cast<double>(capacity * plan.bins());
  state.counters["mean"] = tokens / count;
  state.counters["padded"] = 1 - tokens / (count * static_cast<double>(capacity));
  state.counters["batches"] = 1 - tokens / rows;
  state.counters["packed"] = 1 - tokens / positions;
  // A bin of more than half the capacity holds one document of that size.
  const auto halves = static_cast<double>(std::count_if(
      lengths.begin(), lengths.end(), [&](int64_t length) { return 2 * length > capacity; }));
  state.counters["bins/bound"] =
      static_cast<double>(plan.bins()) /
      std::max(halves, std::ceil(tokens / static_cast<double>(capacity)));
}

BENCHMARK(quality)
    ->ArgsProduct({{kLogNormal, kUniform, kFromFile}, {kLongest, 2 * kLongest, 4 * kLongest}})
    ->Unit(benchmark::kMillisecond);

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
