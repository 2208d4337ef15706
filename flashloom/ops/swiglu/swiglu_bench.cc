// Tensors hold zeros: no kernel here branches on a value, so the time is that of any numbers.
#include <benchmark/benchmark.h>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/swiglu/swiglu.h"

namespace flashloom {
namespace {

void forward(benchmark::State& state, DType dtype) {
  const int64_t rows = state.range(0);
  const int64_t columns = state.range(1);
  const OwnedTensor gate(dtype, {rows, columns});
  const OwnedTensor up(dtype, {rows, columns});
  const OwnedTensor out(dtype, {rows, columns});
  for (auto _ : state) {
    swiglu_forward(out, gate, up);
  }
  report_bytes(state, 3 * out.view().bytes());
}

void backward(benchmark::State& state, DType dtype) {
  const int64_t rows = state.range(0);
  const int64_t columns = state.range(1);
  const OwnedTensor gate(dtype, {rows, columns});
  const OwnedTensor up(dtype, {rows, columns});
  const OwnedTensor dout(dtype, {rows, columns});
  const OwnedTensor dgate(dtype, {rows, columns});
  const OwnedTensor dup(dtype, {rows, columns});
  for (auto _ : state) {
    swiglu_backward(dgate, dup, {}, dout, gate, up);
  }
  report_bytes(state, 5 * dout.view().bytes());
}

// SmolLM2-135M and Qwen2.5-0.5B, a micro-batch of 1024 tokens; one token, as in generation.
#define FLASHLOOM_SIZES Args({1024, 1536})->Args({1024, 4864})->Args({1, 1536})->UseRealTime()
BENCHMARK_CAPTURE(forward, f32, DType::f32)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(forward, bf16, DType::bf16)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, f32, DType::f32)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, bf16, DType::bf16)->FLASHLOOM_SIZES;

}  // namespace
}  // namespace flashloom
