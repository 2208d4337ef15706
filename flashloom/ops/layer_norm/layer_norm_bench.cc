// Tensors hold zeros: no kernel here branches on a value, so the time is that of any numbers.
#include <benchmark/benchmark.h>

#include <vector>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/layer_norm/layer_norm.h"

namespace flashloom {
namespace {

struct Tensors {
  OwnedTensor input, residual, sum, out, weight, bias, mean, inverse_deviation;
  int64_t row_bytes;

  Tensors(DType dtype, int64_t rows, int64_t columns)
      : input(dtype, {rows, columns}),
        residual(dtype, {rows, columns}),
        sum(dtype, {rows, columns}),
        out(dtype, {rows, columns}),
        weight(DType::f32, {columns}),
        bias(DType::f32, {columns}),
        mean(DType::f32, {rows}),
        inverse_deviation(DType::f32, {rows}),
        row_bytes(input.view().bytes()) {}
};

void forward(benchmark::State& state, DType dtype, bool with_residual) {
  const Tensors t(dtype, state.range(0), state.range(1));
  const auto residual = with_residual ? ConstTensorView(t.residual) : ConstTensorView();
  const auto sum = with_residual ? TensorView(t.sum) : TensorView();
  for (auto _ : state) {
    layer_norm_forward(t.out, t.mean, t.inverse_deviation, sum, t.input, residual, t.weight,
                       t.bias);
  }
  report_bytes(state, t.row_bytes * (with_residual ? 4 : 2));
}

void backward(benchmark::State& state, DType dtype, bool with_parameters) {
  const Tensors t(dtype, state.range(0), state.range(1));
  layer_norm_forward(t.out, t.mean, t.inverse_deviation, {}, t.input, {}, t.weight, t.bias);
  const OwnedTensor dweight(DType::f32, {state.range(1)});
  const OwnedTensor dbias(DType::f32, {state.range(1)});
  std::vector<std::byte> workspace(
      static_cast<size_t>(layer_norm_backward_workspace_bytes(state.range(0), state.range(1))));
  for (auto _ : state) {
    layer_norm_backward(t.out, with_parameters ? TensorView(dweight) : TensorView(),
                        with_parameters ? TensorView(dbias) : TensorView(), t.sum, t.residual,
                        t.input, t.mean, t.inverse_deviation, t.weight, workspace);
  }
  report_bytes(state, t.row_bytes * 4);
}

// ModernBERT-base and -large, a micro-batch of 1024 tokens; one token.
#define FLASHLOOM_SIZES Args({1024, 768})->Args({1024, 1024})->Args({1, 768})->UseRealTime()
BENCHMARK_CAPTURE(forward, f32, DType::f32, false)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(forward, f32_residual, DType::f32, true)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(forward, bf16_residual, DType::bf16, true)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, f32, DType::f32, false)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, f32_parameters, DType::f32, true)->FLASHLOOM_SIZES;
BENCHMARK_CAPTURE(backward, bf16_parameters, DType::bf16, true)->FLASHLOOM_SIZES;

}  // namespace
}  // namespace flashloom
