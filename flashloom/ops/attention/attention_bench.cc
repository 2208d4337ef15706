#include <benchmark/benchmark.h>
#include <dnnl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <string>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

// Rates of the CPU kernels beside the machine's rate of f32 matrix products. FLOPs are those of the
// visible pairs, 2 (D + E) a pair forward and 2.5 times that backward. `GFLOPS` goes by the clock
// on the wall; `core_GFLOPS` and `of_gemm` by CPU time, a core, which other jobs disturb less.

namespace flashloom {
namespace {

using attention_test::Tensor;
using attention_test::Workspace;

double cpu_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

// GFLOP/s a core of oneDNN's sgemm, 2048^3, best of three.
double gemm_rate() {
  static const double rate = [] {
    constexpr int64_t kSize = 2048;
    const Tensor a = std::move(Tensor(DType::f32, {kSize, kSize}).random(1));
    const Tensor b = std::move(Tensor(DType::f32, {kSize, kSize}).random(2));
    const Tensor c(DType::f32, {kSize, kSize});
    double best = 1e9;
    for (int i = 0; i < 3; ++i) {
      const double start = cpu_seconds();
      dnnl_sgemm('N', 'N', kSize, kSize, kSize, 1, static_cast<const float*>(a.view().data), kSize,
                 static_cast<const float*>(b.view().data), kSize, 0,
                 static_cast<float*>(c.view().data), kSize);
      best = std::min(best, cpu_seconds() - start);
    }
    return 2e-9 * kSize * kSize * kSize / best;
  }();
  return rate;
}

struct Shape {
  int64_t batch, heads, key_heads, length, dim;
  bool causal;
  DType dtype;
  int64_t window = -1;

  double pairs() const {
    const auto n = static_cast<double>(length);
    const auto w = static_cast<double>(window);
    const double row = window >= 0 ? w * n - w * (w - 1) / 2 + n - w : n * (n + 1) / 2;
    return static_cast<double>(batch * heads) * (causal ? row : n * n);
  }

  std::string name() const {
    return std::string(dtype_name(dtype)) + "/D" + std::to_string(dim) + "/" +
           (window >= 0 ? "window" + std::to_string(window)
            : causal    ? "causal"
                        : "full") +
           "/S" + std::to_string(length) + "/B" + std::to_string(batch) + "/H" +
           std::to_string(heads) + ":" + std::to_string(key_heads);
  }
};

struct Call {
  Tensor q, k, v, out, lse, dout, dq, dk, dv;
  AttentionOptions options;

  explicit Call(const Shape& s)
      : q(s.dtype, {s.batch, s.heads, s.length, s.dim}),
        k(s.dtype, {s.batch, s.key_heads, s.length, s.dim}),
        v(s.dtype, {s.batch, s.key_heads, s.length, s.dim}),
        out(s.dtype, {s.batch, s.heads, s.length, s.dim}),
        lse(DType::f32, {s.batch, s.heads, s.length}),
        dout(s.dtype, {s.batch, s.heads, s.length, s.dim}),
        dq(s.dtype, {s.batch, s.heads, s.length, s.dim}),
        dk(s.dtype, {s.batch, s.key_heads, s.length, s.dim}),
        dv(s.dtype, {s.batch, s.key_heads, s.length, s.dim}) {
    q.random(1);
    k.random(2);
    v.random(3);
    dout.random(4);
    options.visibility.right = s.causal ? 0 : -1;
    options.visibility.left = s.window;
  }
};

// Runs `call` as often as asked and counts.
template <class Body>
void measure(benchmark::State& state, double flops, Body call) {
  call();
  const double start = cpu_seconds();
  for (auto _ : state) {
    call();
  }
  const double runs = static_cast<double>(state.iterations());
  const double rate = flops * runs / (cpu_seconds() - start) * 1e-9;
  state.counters["GFLOPS"] = benchmark::Counter(flops * runs * 1e-9, benchmark::Counter::kIsRate);
  state.counters["core_GFLOPS"] = rate;
  state.counters["of_gemm"] = rate / gemm_rate();
}

void forward_rate(benchmark::State& state, const Shape& shape) {
  Call call(shape);
  const AttentionOutputs outputs = {.out = call.out, .lse = call.lse};
  const AttentionInputs inputs = {call.q, call.k, call.v};
  const Workspace workspace(attention_forward_workspace_bytes(outputs, inputs, call.options));
  measure(state, 4.0 * static_cast<double>(shape.dim) * shape.pairs(),
          [&] { attention_forward(outputs, inputs, workspace.span(), call.options); });
}

void backward_rate(benchmark::State& state, const Shape& shape) {
  Call call(shape);
  const AttentionInputs inputs = {call.q, call.k, call.v};
  attention_test::forward({.out = call.out, .lse = call.lse}, inputs, call.options);
  const AttentionGradients gradients = {.dq = call.dq, .dk = call.dk, .dv = call.dv};
  const AttentionSaved saved = {.out = call.out, .lse = call.lse, .dout = call.dout};
  const Workspace workspace(
      attention_backward_workspace_bytes(gradients, inputs, saved, call.options));
  measure(state, 10.0 * static_cast<double>(shape.dim) * shape.pairs(),
          [&] { attention_backward(gradients, inputs, saved, workspace.span(), call.options); });
}

void gemm(benchmark::State& state) {
  for (auto _ : state) {
    benchmark::DoNotOptimize(gemm_rate());
  }
  state.counters["core_GFLOPS"] = gemm_rate();
}

[[maybe_unused]] const bool kRegistered = [] {
  benchmark::RegisterBenchmark("gemm", gemm)->Iterations(1);
  std::vector<Shape> shapes;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t dim : {64, 128}) {
      for (const bool causal : {false, true}) {
        for (const int64_t length : {512, 1024, 2048, 4096, 8192}) {
          shapes.push_back({1, 512 / dim, 512 / dim, length, dim, causal, dtype});
        }
      }
    }
  }
  // Short packed documents of a fine-tuning run: 9 query and 3 key heads of 64.
  shapes.push_back({9, 9, 3, 110, 64, true, DType::f32});
  for (const int64_t window : {64, 127, 256, 1024, 4096}) {
    shapes.push_back({1, 8, 8, 8192, 64, true, DType::f32, window});
  }
  for (const Shape& shape : shapes) {
    const std::string name = shape.name();
    benchmark::RegisterBenchmark(("forward/" + name).c_str(), forward_rate, shape)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(("backward/" + name).c_str(), backward_rate, shape)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
  return true;
}();

}  // namespace
}  // namespace flashloom
