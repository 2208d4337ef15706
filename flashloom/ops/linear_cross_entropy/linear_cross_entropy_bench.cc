#include <benchmark/benchmark.h>

#include <cmath>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/machine_rate.h"
#include "flashloom/ops/linear/test_matrix.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "flashloom/ops/linear_cross_entropy/logit_rows.h"

namespace flashloom {
namespace {

// Arguments: tokens, channels, vocabulary, gradients (0 none, 1 of hidden, 2 of both).
struct Head {
  explicit Head(const benchmark::State& state)
      : tokens(state.range(0)),
        channels(state.range(1)),
        vocabulary(state.range(2)),
        hidden(tokens, channels, 1),
        dhidden(state.range(3) > 0 ? tokens : 0, channels, 2),
        weight(vocabulary, channels, 3),
        dweight(state.range(3) > 1 ? vocabulary : 0, channels, 4),
        loss(static_cast<size_t>(tokens)) {
    for (int64_t t = 0; t < tokens; ++t) {
      labels.push_back(static_cast<int32_t>(t * 7919 % vocabulary));
    }
    if (state.range(3) > 0) {
      dhidden_view = dhidden.view;
    }
    if (state.range(3) > 1) {
      dweight_view = dweight.view;
    }
    operations = 2.0 * static_cast<double>(tokens * channels * vocabulary) *
                 static_cast<double>(1 + state.range(3));
  }

  void report(benchmark::State& state, int64_t bytes) const {
    state.counters["GFLOP/s"] =
        benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
    state.counters["of_big_gemm"] = benchmark::Counter(
        operations / machine_gemm_rate(), benchmark::Counter::kIsIterationInvariantRate);
    state.counters["MB"] = static_cast<double>(bytes) * 1e-6;
  }

  int64_t tokens, channels, vocabulary;
  TestMatrix<> hidden, dhidden, weight, dweight;
  TensorView dhidden_view, dweight_view;
  std::vector<float> loss;
  std::vector<int32_t> labels;
  double operations;
};

void without_logits(benchmark::State& state) {
  Head head(state);
  std::vector<std::byte> workspace(static_cast<size_t>(linear_cross_entropy_workspace_bytes(
      head.tokens, head.channels, head.vocabulary, state.range(3) > 0)));
  for (auto _ : state) {
    linear_cross_entropy(TensorView(head.loss.data(), {head.tokens}), head.dhidden_view,
                         head.dweight_view, head.hidden.view, head.weight.view,
                         ConstTensorView(head.labels.data(), {head.tokens}), workspace);
  }
  head.report(state, static_cast<int64_t>(workspace.size()));
}

// The same sums with all logits in memory: three whole products and two passes over rows, with the
// same kernels.
void materialised_logits(benchmark::State& state) {
  Head head(state);
  TestMatrix<> logits(head.tokens, head.vocabulary, 5);
  for (auto _ : state) {
    gemm(logits.view, head.hidden.view, head.weight.view, {.transpose_b = true});
    parallel_for(head.tokens, [&](int64_t t) {
      float* row = logits.view.as<float>() + t * head.vocabulary;
      const auto at = static_cast<size_t>(t);
      const LogitStatistics found = logit_statistics(row, head.vocabulary);
      head.loss[at] = found.maximum + std::log(found.exp_sum) - row[head.labels[at]];
      if (head.dhidden_view) {
        logit_gradients(row, head.vocabulary, found.maximum, 1 / found.exp_sum, 0, 0);
        row[head.labels[at]] -= 1;
      }
    });
    if (head.dhidden_view) {
      gemm(head.dhidden_view, logits.view, head.weight.view);
    }
    if (head.dweight_view) {
      gemm(head.dweight_view, logits.view, head.hidden.view, {.transpose_a = true, .beta = 1});
    }
  }
  head.report(state, logits.view.bytes());
}

void heads(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"T", "C", "V", "gradients"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int64_t gradients : {0, 1, 2}) {
    bench->Args({1024, 576, 49152, gradients});
    bench->Args({512, 896, 151936, gradients});
  }
}

BENCHMARK(without_logits)->Apply(heads);
BENCHMARK(materialised_logits)->Apply(heads);

}  // namespace
}  // namespace flashloom
