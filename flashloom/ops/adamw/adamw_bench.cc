// Tensors hold zeros: no kernel here branches on a value, so the time is that of any numbers.
#include <benchmark/benchmark.h>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/adamw/adamw.h"

namespace flashloom {
namespace {

void step(benchmark::State& state) {
  const int64_t count = state.range(0);
  const OwnedTensor parameter(DType::f32, {count});
  const OwnedTensor m(DType::f32, {count});
  const OwnedTensor v(DType::f32, {count});
  const OwnedTensor gradient(DType::f32, {count});
  for (auto _ : state) {
    adamw(parameter, m, v, gradient, {});
  }
  report_bytes(state, 7 * parameter.view().bytes());
}

// A LoRA matrix of SmolLM2-135M at rank 16, one of its weights, its embedding.
BENCHMARK(step)->Arg(16 * 576)->Arg(1536 * 576)->Arg(49152 * 576)->UseRealTime();

}  // namespace
}  // namespace flashloom
