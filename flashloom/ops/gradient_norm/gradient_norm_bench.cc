// Tensors hold zeros: no kernel here branches on a value, so the time is that of any numbers.
#include <benchmark/benchmark.h>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/gradient_norm/gradient_norm.h"

namespace flashloom {
namespace {

void squares(benchmark::State& state, DType dtype) {
  const OwnedTensor gradient(dtype, {state.range(0)});
  for (auto _ : state) {
    benchmark::DoNotOptimize(sum_of_squares(gradient));
  }
  report_bytes(state, gradient.view().bytes());
}

// A LoRA matrix of SmolLM2-135M at rank 16, one of its weights, its embedding.
BENCHMARK_CAPTURE(squares, f32, DType::f32)
    ->Arg(16 * 576)
    ->Arg(1536 * 576)
    ->Arg(49152 * 576)
    ->UseRealTime();
BENCHMARK_CAPTURE(squares, bf16, DType::bf16)->Arg(1536 * 576)->UseRealTime();

}  // namespace
}  // namespace flashloom
