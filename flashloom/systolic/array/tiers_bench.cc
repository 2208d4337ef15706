// PE-cycles simulated a second by each tier.

#include <benchmark/benchmark.h>

#include "flashloom/core/parallel.h"
#include "flashloom/systolic/array/attention_case_for_test.h"

namespace flashloom::systolic {
namespace {

void report(benchmark::State& state, const AttentionCase& run) {
  const double pe_cycles =
      static_cast<double>(run.schedule.cycles) * run.config.shape.rows * run.config.shape.columns;
  state.counters["PE-cycles/s"] = benchmark::Counter(
      pe_cycles, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

void reference_tier(benchmark::State& state) {
  const auto n = static_cast<int>(state.range(0));
  const AttentionCase run(small_machine(n, n), {.queries = 2 * n});
  for (auto _ : state) {
    benchmark::DoNotOptimize(run.reference());
  }
  report(state, run);
}

void tile_tier(benchmark::State& state) {
  const auto n = static_cast<int>(state.range(0));
  const AttentionCase run(small_machine(n, n), {.queries = 4 * n});
  set_thread_count(1);
  for (auto _ : state) {
    benchmark::DoNotOptimize(run.collapsed(state.range(1) != 0));
  }
  set_thread_count(0);
  report(state, run);
}

BENCHMARK(reference_tier)->Arg(4)->Arg(16)->Arg(32)->Unit(benchmark::kMillisecond);
BENCHMARK(tile_tier)
    ->ArgNames({"n", "integers"})
    ->Args({16, 0})
    ->Args({128, 0})
    ->Args({16, 1})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashloom::systolic
