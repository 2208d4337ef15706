#include <benchmark/benchmark.h>

#include "flashloom/core/bench_counters.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/embedding/embedding.h"

namespace flashloom {
namespace {

// The vocabulary of SmolLM2, of which a batch of text meets a few thousand ids again and again.
constexpr int64_t kVocabulary = 49152;

OwnedTensor some_tokens(int64_t count) {
  RandomSequence random(1, RandomStream::test);
  OwnedTensor tokens(DType::i32, {count});
  for (int64_t t = 0; t < count; ++t) {
    tokens.set({t}, static_cast<double>(kVocabulary - 1) * static_cast<double>(random.uniform()) *
                        random.uniform());
  }
  return tokens;
}

void forward(benchmark::State& state, DType dtype) {
  const OwnedTensor table(dtype, {kVocabulary, state.range(1)});
  const OwnedTensor tokens = some_tokens(state.range(0));
  const OwnedTensor out(dtype, {state.range(0), state.range(1)});
  for (auto _ : state) {
    embedding_forward(out, table, tokens);
  }
  report_bytes(state, 2 * out.view().bytes());
}

void backward(benchmark::State& state) {
  const OwnedTensor dtable(DType::f32, {kVocabulary, state.range(1)});
  const OwnedTensor tokens = some_tokens(state.range(0));
  const OwnedTensor dout(DType::f32, {state.range(0), state.range(1)});
  for (auto _ : state) {
    embedding_backward(dtable, dout, tokens);
  }
  report_bytes(state, 3 * dout.view().bytes());
}

BENCHMARK_CAPTURE(forward, f32, DType::f32)->Args({1024, 576})->UseRealTime();
BENCHMARK_CAPTURE(forward, bf16, DType::bf16)->Args({1024, 576})->UseRealTime();
BENCHMARK(backward)->Args({1024, 576})->UseRealTime();

}  // namespace
}  // namespace flashloom
