// Tensors hold zeros: no kernel here branches on a value, so the time is that of any numbers.
#include <benchmark/benchmark.h>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/geglu/geglu.h"

namespace flashloom {
namespace {

void forward(benchmark::State& state, DType dtype, GeluApproximation approximation) {
  const int64_t rows = state.range(0);
  const int64_t columns = state.range(1);
  const OwnedTensor gate(dtype, {rows, columns});
  const OwnedTensor up(dtype, {rows, columns});
  const OwnedTensor out(dtype, {rows, columns});
  for (auto _ : state) {
    geglu_forward(out, gate, up, {.approximation = approximation});
  }
  report_bytes(state, 3 * out.view().bytes());
}

void backward(benchmark::State& state, DType dtype, GeluApproximation approximation) {
  const int64_t rows = state.range(0);
  const int64_t columns = state.range(1);
  const OwnedTensor gate(dtype, {rows, columns});
  const OwnedTensor up(dtype, {rows, columns});
  const OwnedTensor dout(dtype, {rows, columns});
  const OwnedTensor dgate(dtype, {rows, columns});
  const OwnedTensor dup(dtype, {rows, columns});
  for (auto _ : state) {
    geglu_backward(dgate, dup, {}, dout, gate, up, {.approximation = approximation});
  }
  report_bytes(state, 5 * dout.view().bytes());
}

// ModernBERT-base and -large, a micro-batch of 1024 tokens; one token.
#define FLASHLOOM_SIZES Args({1024, 1152})->Args({1024, 2624})->Args({1, 1152})->UseRealTime()
BENCHMARK_CAPTURE(forward, f32, DType::f32, GeluApproximation::none)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(forward, bf16, DType::bf16, GeluApproximation::none)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(forward, f32_tanh, DType::f32, GeluApproximation::tanh)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, f32, DType::f32, GeluApproximation::none)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, bf16, DType::bf16, GeluApproximation::none)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, f32_tanh, DType::f32, GeluApproximation::tanh)->FLASHLOOM_SIZES;

}  // namespace
}  // namespace flashloom
