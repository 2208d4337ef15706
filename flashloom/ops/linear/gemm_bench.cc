#include <benchmark/benchmark.h>
#include <dnnl.h>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/machine_rate.h"
#include "flashloom/ops/linear/peak_flops.h"
#include "flashloom/ops/linear/test_matrix.h"

namespace flashloom {
namespace {

enum Pass { kForward, kInputGradient, kWeightGradient };

// A linear layer's three products: arguments are the pass, tokens, outputs and inputs.
struct Layer {
  explicit Layer(const benchmark::State& state)
      : pass(static_cast<Pass>(state.range(0))),
        tokens(state.range(1)),
        outputs(state.range(2)),
        inputs(state.range(3)),
        x(tokens, inputs, 1),
        weight(outputs, inputs, 2),
        y(tokens, outputs, 3) {}

  void report(benchmark::State& state) const {
    const double operations = 2.0 * static_cast<double>(tokens * outputs * inputs);
    state.counters["GFLOP/s"] =
        benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
    state.counters["of_big_gemm"] = benchmark::Counter(
        operations / machine_gemm_rate(), benchmark::Counter::kIsIterationInvariantRate);
    static const double peak = measure_peak_flops();
    state.counters["of_peak"] =
        benchmark::Counter(operations / peak, benchmark::Counter::kIsIterationInvariantRate);
  }

  Pass pass;
  int64_t tokens, outputs, inputs;
  TestMatrix<> x, weight, y;
};

void gemm_of_layer(benchmark::State& state) {
  const Layer layer(state);
  for (auto _ : state) {
    switch (layer.pass) {
      case kForward:
        gemm(layer.y.view, layer.x.view, layer.weight.view, {.transpose_b = true});
        break;
      case kInputGradient:
        gemm(layer.x.view, layer.y.view, layer.weight.view);
        break;
      case kWeightGradient:
        gemm(layer.weight.view, layer.y.view, layer.x.view, {.transpose_a = true});
        break;
    }
  }
  layer.report(state);
}

// oneDNN with its own threads, whose bits depend on their number.
void onednn_of_layer(benchmark::State& state) {
  const Layer layer(state);
  float* x = layer.x.view.as<float>();
  float* w = layer.weight.view.as<float>();
  float* y = layer.y.view.as<float>();
  const int64_t t = layer.tokens;
  const int64_t n = layer.outputs;
  const int64_t k = layer.inputs;
  for (auto _ : state) {
    switch (layer.pass) {
      case kForward:
        dnnl_sgemm('N', 'T', t, n, k, 1, x, k, w, k, 0, y, n);
        break;
      case kInputGradient:
        dnnl_sgemm('N', 'N', t, k, n, 1, y, n, w, k, 0, x, k);
        break;
      case kWeightGradient:
        dnnl_sgemm('T', 'N', n, k, t, 1, y, n, x, k, 0, w, k);
        break;
    }
  }
  layer.report(state);
}

// SmolLM2-135M: q and o 576, k and v 192, MLP 1536; adapters of rank 16 and their group of three.
// Qwen2.5-0.5B: 896, 128, 4864.
void layers(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"pass", "T", "N", "K"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (const int64_t pass : {kForward, kInputGradient, kWeightGradient}) {
    for (const int64_t tokens : {128, 512, 1024}) {
      for (const auto [outputs, inputs] : {std::array<int64_t, 2>{576, 576},
                                           {192, 576},
                                           {1536, 576},
                                           {576, 1536},
                                           {48, 576},
                                           {576, 16},
                                           {896, 896},
                                           {128, 896},
                                           {4864, 896},
                                           {896, 4864}}) {
        bench->Args({pass, tokens, outputs, inputs});
      }
    }
  }
  bench->Args({kForward, 1, 576, 576});  // generation: bound by reading the weight
  bench->Args({kForward, 1, 49152, 576});
  bench->Args({kForward, 8, 1536, 576});
}

BENCHMARK(gemm_of_layer)->Apply(layers);
BENCHMARK(onednn_of_layer)->Apply(layers);

}  // namespace
}  // namespace flashloom
