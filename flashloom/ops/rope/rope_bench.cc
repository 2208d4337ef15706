// Tensors hold zeros: no kernel here branches on a value, so the time is that of any numbers.
#include <benchmark/benchmark.h>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/rope/rope.h"

namespace flashloom {
namespace {

// range: tokens, query heads, key heads, with biases
void forward(benchmark::State& state, DType dtype) {
  const int64_t tokens = state.range(0);
  const int64_t head_dim = 64;
  const OwnedTensor q(dtype, {tokens, state.range(1), head_dim});
  const OwnedTensor k(dtype, {tokens, state.range(2), head_dim});
  const OwnedTensor v(dtype, {tokens, state.range(2), head_dim});
  const OwnedTensor q_bias(DType::f32, {state.range(1) * head_dim});
  const OwnedTensor k_bias(DType::f32, {state.range(2) * head_dim});
  OwnedTensor positions(DType::i32, {tokens});
  for (int64_t t = 0; t < tokens; ++t) {
    positions.set({t}, static_cast<double>(t));
  }
  const OwnedTensor frequencies(DType::f32, {head_dim / 2});
  rope_frequencies(frequencies, {});
  const bool with_bias = state.range(3) != 0;
  const RopeBias bias = with_bias ? RopeBias{.q = q_bias, .k = k_bias, .v = k_bias} : RopeBias{};
  for (auto _ : state) {
    rope_forward(q, k, v, positions, frequencies, bias);
  }
  report_bytes(state, 2 * (q.view().bytes() + k.view().bytes() * (with_bias ? 2 : 1)));
}

void backward_with_dbias(benchmark::State& state, DType dtype) {
  const int64_t tokens = state.range(0);
  const int64_t head_dim = 64;
  const OwnedTensor q(dtype, {tokens, state.range(1), head_dim});
  const OwnedTensor k(dtype, {tokens, state.range(2), head_dim});
  const OwnedTensor v(dtype, {tokens, state.range(2), head_dim});
  const OwnedTensor q_bias(DType::f32, {state.range(1) * head_dim});
  const OwnedTensor k_bias(DType::f32, {state.range(2) * head_dim});
  const OwnedTensor v_bias(DType::f32, {state.range(2) * head_dim});
  const OwnedTensor positions(DType::i32, {tokens});
  const OwnedTensor frequencies(DType::f32, {head_dim / 2});
  rope_frequencies(frequencies, {});
  for (auto _ : state) {
    rope_backward(q, k, v, positions, frequencies, {.q = q_bias, .k = k_bias, .v = v_bias});
  }
  report_bytes(state, 2 * (q.view().bytes() + k.view().bytes()) + v.view().bytes());
}

// SmolLM2-135M (9 and 3 heads, no bias) and Qwen2.5-0.5B (14 and 2, bias), 1024 tokens; one token.
BENCHMARK_CAPTURE(forward, f32, DType::f32)
    ->Args({1024, 9, 3, 0})
    ->Args({1024, 14, 2, 1})
    ->Args({1, 9, 3, 0})
    ->UseRealTime();
BENCHMARK_CAPTURE(forward, bf16, DType::bf16)
    ->Args({1024, 9, 3, 0})
    ->Args({1024, 14, 2, 1})
    ->UseRealTime();
BENCHMARK_CAPTURE(backward_with_dbias, f32, DType::f32)->Args({1024, 14, 2})->UseRealTime();

}  // namespace
}  // namespace flashloom
