// m and v in 8 bits against f32, and the parameter in bf16 with stochastic rounding against f32.
#include <benchmark/benchmark.h>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/adamw_8bit/adamw_8bit.h"

namespace flashloom {
namespace {

// A weight of SmolLM2-135M, its embedding.
constexpr int64_t kSizes[] = {1536 * 576, 49152 * 576};

void f32_moments(benchmark::State& state, DType dtype) {
  const int64_t count = kSizes[state.range(0)];
  const OwnedTensor parameter(dtype, {count});
  const OwnedTensor m(DType::f32, {count});
  const OwnedTensor v(DType::f32, {count});
  const OwnedTensor gradient = normal_tensor(DType::f32, {count}, 1);
  for (auto _ : state) {
    adamw(parameter, m, v, gradient, {.rounding = AdamwRounding::stochastic});
  }
  state.counters["ns_an_element"] = benchmark::Counter(
      static_cast<double>(count) * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  report_bytes(state, 2 * parameter.view().bytes() + 20 * count);
}

void moments_of_8_bits(benchmark::State& state, DType dtype) {
  const int64_t count = kSizes[state.range(0)];
  const OwnedTensor parameter(dtype, {count});
  const OwnedTensor m(DType::u8, {count});
  const OwnedTensor v(DType::u8, {count});
  const OwnedTensor scales(DType::f32, {(count + 255) / 256});
  const OwnedTensor more_scales(DType::f32, {(count + 255) / 256});
  const OwnedTensor gradient = normal_tensor(DType::f32, {count}, 1);
  for (auto _ : state) {
    adamw_8bit(parameter, {m, scales}, {v, more_scales}, gradient,
               {.rounding = AdamwRounding::stochastic});
  }
  state.counters["ns_an_element"] = benchmark::Counter(
      static_cast<double>(count) * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  report_bytes(state, 2 * parameter.view().bytes() + 8 * count);
}

BENCHMARK_CAPTURE(f32_moments, f32, DType::f32)->Arg(0)->Arg(1)->UseRealTime();
BENCHMARK_CAPTURE(f32_moments, bf16, DType::bf16)->Arg(0)->Arg(1)->UseRealTime();
BENCHMARK_CAPTURE(moments_of_8_bits, f32, DType::f32)->Arg(0)->Arg(1)->UseRealTime();
BENCHMARK_CAPTURE(moments_of_8_bits, bf16, DType::bf16)->Arg(0)->Arg(1)->UseRealTime();

}  // namespace
}  // namespace flashloom
