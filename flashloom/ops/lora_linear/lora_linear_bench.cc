#include <benchmark/benchmark.h>

#include "flashloom/ops/linear/machine_rate.h"
#include "flashloom/ops/linear/test_matrix.h"
#include "flashloom/ops/lora_linear/lora_linear.h"

namespace flashloom {
namespace {

// A group of projections of SmolLM2-135M with adapters of rank 16, A and its gradient joined.
struct Group {
  Group(int64_t tokens, int64_t inputs, const std::vector<int64_t>& outputs)
      : x(tokens, inputs, 1),
        dx(tokens, inputs, 2),
        hidden(tokens, kRank * static_cast<int64_t>(outputs.size()), 3),
        dhidden(hidden),
        a(hidden.view.dim(1), inputs, 4),
        da(a) {
    for (const int64_t n : outputs) {
      weight.emplace_back(n, inputs, 5);
      b.emplace_back(n, kRank, 6);
      db.emplace_back(n, kRank, 7);
      y.emplace_back(tokens, n, 8);
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      const int64_t first = kRank * static_cast<int64_t>(i);
      projections.push_back({.weight = weight[i].view,
                             .a = a.view.slice(0, first, kRank),
                             .b = b[i].view,
                             .scale = 2});
      gradients.push_back({da.view.slice(0, first, kRank), db[i].view});
      y_views.push_back(y[i].view);
      dy_views.push_back(y[i].view);
      operations += 2.0 * static_cast<double>(tokens) *
                    static_cast<double>(outputs[i] * inputs + kRank * (outputs[i] + inputs));
      adapter_operations +=
          2.0 * static_cast<double>(tokens) * static_cast<double>(kRank * (outputs[i] + inputs));
    }
  }

  static constexpr int64_t kRank = 16;
  TestMatrix<> x, dx, hidden, dhidden, a, da;
  std::vector<TestMatrix<>> weight, b, db, y;
  std::vector<LoraProjection> projections;
  std::vector<LoraGradients> gradients;
  std::vector<TensorView> y_views;
  std::vector<ConstTensorView> dy_views;
  double operations = 0;
  double adapter_operations = 0;
};

void report(benchmark::State& state, double operations) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_big_gemm"] = benchmark::Counter(operations / machine_gemm_rate(),
                                                     benchmark::Counter::kIsIterationInvariantRate);
}

const std::vector<std::vector<int64_t>> kGroups = {{576, 192, 192}, {576}, {1536, 1536}};

void forward(benchmark::State& state) {
  const Group group(state.range(0), 576, kGroups[static_cast<size_t>(state.range(1))]);
  for (auto _ : state) {
    lora_linear_forward(group.y_views, group.hidden.view, group.x.view, group.projections);
  }
  report(state, group.operations);
}

void backward(benchmark::State& state) {
  const Group group(state.range(0), 576, kGroups[static_cast<size_t>(state.range(1))]);
  for (auto _ : state) {
    lora_linear_backward(group.dx.view, group.gradients, group.dhidden.view, group.dy_views,
                         group.x.view, group.hidden.view, group.projections);
  }
  report(state, group.operations + group.adapter_operations);
}

BENCHMARK(forward)->ArgsProduct({{128, 512, 1024}, {0, 1, 2}})->UseRealTime();
BENCHMARK(backward)->ArgsProduct({{128, 512, 1024}, {0, 1, 2}})->UseRealTime();

}  // namespace
}  // namespace flashloom
