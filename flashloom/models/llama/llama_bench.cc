#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/models/llama/llama_flops.h"
#include "flashloom/models/llama/llama_generator.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace flashloom {
namespace {

/// SmolLM2-135M; random weights take the same time.
ModelConfig smollm2() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocabulary_size = 49152;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.layers = 30;
  config.heads = 9;
  config.kv_heads = 3;
  config.head_dim = 64;
  config.max_positions = 8192;
  config.rms_norm_epsilon = 1e-5;
  config.rope_theta = 100000;
  config.tied_embeddings = true;
  return config;
}

constexpr int64_t kTokens = 1024;
constexpr int64_t kDocument = 128;

struct Bench {
  MemoryPlan plan;
  LlamaModel model;
  LlamaGenerator generator;
  Arena arena;
  std::vector<int32_t> tokens, positions, labels, cu_seqlens;
  LlamaWork work;

  /// Every `loss_every`-th token bears loss.
  Bench(const LlamaModel::Options& options, int64_t loss_every)
      : model(smollm2(), options, plan), generator(model, {.capacity = 256}, plan), arena(plan) {
    model.bind(arena);
    generator.bind(arena);
    RandomSequence random(1, RandomStream::test);
    for (const Parameter& parameter : model.parameters()) {
      float* values = parameter.value.as<float>();
      for (int64_t i = 0; i < parameter.value.size(); ++i) {
        values[i] = parameter.role == ParameterRole::vector ? 1.0f : random.uniform(-0.07f, 0.07f);
      }
    }
    for (int32_t t = 0; t < kTokens; ++t) {
      tokens.push_back(t * 37 % 49152);
      positions.push_back(t % kDocument);
      labels.push_back(t % loss_every == 0 ? t * 41 % 49152 : kIgnoredLabel);
      work.loss_tokens += t % loss_every == 0 ? 1 : 0;
      if (t % kDocument == 0) {
        cu_seqlens.push_back(t);
      }
    }
    cu_seqlens.push_back(kTokens);
    work.tokens = kTokens;
    work.visible_pairs = kTokens / kDocument * kDocument * (kDocument + 1) / 2;
  }

  LlamaBatch batch() const {
    const auto view = [](const std::vector<int32_t>& values) {
      return ConstTensorView(values.data(), {static_cast<int64_t>(values.size())});
    };
    return {view(tokens), view(positions), view(labels), view(cu_seqlens), kDocument};
  }
};

/// The bound: the best rate of the model's largest layer product, in FLOP a second.
double gemm_rate() {
  std::vector<float> x(kTokens * 576, 0.5f);
  std::vector<float> w(1536 * 576, 0.5f);
  std::vector<float> y(kTokens * 1536);
  double best = 0;
  for (int run = 0; run < 10; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    gemm(TensorView(y.data(), {kTokens, 1536}), ConstTensorView(x.data(), {kTokens, 576}),
         ConstTensorView(w.data(), {1536, 576}), {.transpose_b = true});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, 2.0 * kTokens * 1536 * 576 / seconds.count());
  }
  return best;
}

void report(benchmark::State& state, double flops, double tokens) {
  state.counters["tokens/s"] =
      benchmark::Counter(tokens, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["FLOP/s"] = benchmark::Counter(
      flops, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.counters["share of GEMM rate"] =
      benchmark::Counter(flops / gemm_rate(), benchmark::Counter::kIsIterationInvariantRate);
}

/// The argument: every n-th token bears loss.
void train_lora(benchmark::State& state) {
  const LoraOptions lora;
  Bench bench({.training = true,
               .lora = lora,
               .max_tokens = kTokens,
               .max_sequence_length = kDocument,
               .max_sequences = kTokens / kDocument},
              state.range(0));
  for (auto _ : state) {
    bench.model.loss_and_gradients(bench.batch(), 1e-3f);
  }
  report(state, llama_training_flops(smollm2(), &lora, bench.work), kTokens);
}

void train_full(benchmark::State& state) {
  Bench bench({.training = true,
               .max_tokens = kTokens,
               .max_sequence_length = kDocument,
               .max_sequences = kTokens / kDocument},
              state.range(0));
  for (auto _ : state) {
    bench.model.loss_and_gradients(bench.batch(), 1e-3f);
  }
  report(state, llama_training_flops(smollm2(), nullptr, bench.work), kTokens);
}

void evaluate(benchmark::State& state) {
  Bench bench({.max_tokens = kTokens,
               .max_sequence_length = kDocument,
               .max_sequences = kTokens / kDocument},
              state.range(0));
  for (auto _ : state) {
    bench.model.evaluate(bench.batch());
  }
  report(state, llama_forward_flops(smollm2(), nullptr, bench.work), kTokens);
}

/// A token after a context of 128. Bound: all weights are read once for each.
void decode(benchmark::State& state) {
  Bench bench({}, 1);
  bench.generator.append(std::span(bench.tokens).first(128));
  for (auto _ : state) {
    bench.generator.append(std::span(bench.tokens).first(1));
    bench.generator.truncate(128);
  }
  state.counters["tokens/s"] = benchmark::Counter(1, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bytes/s"] = benchmark::Counter(
      static_cast<double>(bench.plan.kind_bytes(MemoryKind::weights)),
      benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

BENCHMARK(train_lora)->Arg(1)->Arg(8)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(train_full)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(evaluate)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(decode)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashloom
