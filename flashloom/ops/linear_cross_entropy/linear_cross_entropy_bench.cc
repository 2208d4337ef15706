#include <benchmark/benchmark.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/machine_rate.h"
#include "flashloom/ops/linear/test_matrix.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "flashloom/ops/linear_cross_entropy/logit_rows.h"

namespace flashloom {
namespace {

// Megabytes of a field of /proc/self/status: "VmRSS:" (resident), "VmHWM:" (its peak), "RssAnon:".
double resident_megabytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == field) {
      double kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1.024e-3;
    }
  }
  return 0;
}

// What becomes resident from here on, at its peak, and what of it is anonymous at the end: nothing
// here is freed before that.
class PeakMemory {
 public:
  PeakMemory() {
    std::ofstream("/proc/self/clear_refs") << "5";  // the peak becomes what is resident now
    before_ = resident_megabytes("VmRSS:");
    anonymous_before_ = resident_megabytes("RssAnon:");
  }

  double megabytes() const { return resident_megabytes("VmHWM:") - before_; }

  double anonymous_megabytes() const { return resident_megabytes("RssAnon:") - anonymous_before_; }

 private:
  double before_, anonymous_before_;
};

// Arguments: tokens, channels, vocabulary, gradients (0 none, 1 of hidden, 2 of both).
struct Head {
  explicit Head(const benchmark::State& state)
      : tokens(state.range(0)),
        channels(state.range(1)),
        vocabulary(state.range(2)),
        hidden(tokens, channels, 1),
        weight(vocabulary, channels, 3),
        loss(static_cast<size_t>(tokens)) {
    for (int64_t t = 0; t < tokens; ++t) {
      labels.push_back(static_cast<int32_t>(t * 7919 % vocabulary));
    }
    if (state.range(3) > 1) {
      dweight = floats(vocabulary * channels);
      dweight_view = TensorView(dweight.get(), {vocabulary, channels});
    }
    memory.emplace();
    if (state.range(3) > 0) {
      dhidden = floats(tokens * channels);
      dhidden_view = TensorView(dhidden.get(), {tokens, channels});
    }
    operations = 2.0 * static_cast<double>(tokens * channels * vocabulary) *
                 static_cast<double>(1 + state.range(3));
  }

  // Zeros, so that no page is new when the time runs.
  static std::unique_ptr<float[]> floats(int64_t count) {
    return std::make_unique<float[]>(static_cast<size_t>(count));
  }

  // `operations`: of an exact pass, also where a filter leaves some out.
  void report(benchmark::State& state) const {
    state.counters["MB"] = memory->megabytes();  // before the matrices of the machine's rate
    state.counters["anonymous_MB"] = memory->anonymous_megabytes();
    state.counters["GFLOP/s"] =
        benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
    state.counters["of_big_gemm"] = benchmark::Counter(
        operations / machine_gemm_rate(), benchmark::Counter::kIsIterationInvariantRate);
  }

  int64_t tokens, channels, vocabulary;
  TestMatrix<> hidden, weight;
  std::unique_ptr<float[]> dhidden, dweight;
  TensorView dhidden_view, dweight_view;
  std::vector<float> loss;
  std::vector<int32_t> labels;
  double operations;
  std::optional<PeakMemory> memory;  // beyond hidden, weight and dweight
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
  head.report(state);
}

// The same sums with all logits in memory: three whole products and two passes over rows, with the
// same kernels.
void materialised_logits(benchmark::State& state) {
  Head head(state);
  const auto memory = Head::floats(head.tokens * head.vocabulary);
  const TensorView logits(memory.get(), {head.tokens, head.vocabulary});
  for (auto _ : state) {
    gemm(logits, head.hidden.view, head.weight.view, {.transpose_b = true});
    parallel_for(head.tokens, [&](int64_t t) {
      float* row = logits.as<float>() + t * head.vocabulary;
      const auto at = static_cast<size_t>(t);
      const LogitStatistics found = logit_statistics(row, head.vocabulary);
      head.loss[at] = found.maximum + std::log(found.exp_sum) - row[head.labels[at]];
      if (head.dhidden_view) {
        logit_gradients(row, head.vocabulary, found.maximum, 1 / found.exp_sum, 0, 0);
        row[head.labels[at]] -= 1;
      }
    });
    if (head.dhidden_view) {
      gemm(head.dhidden_view, logits, head.weight.view);
    }
    if (head.dweight_view) {
      gemm(head.dweight_view, logits, head.hidden.view, {.transpose_a = true, .beta = 1});
    }
  }
  head.report(state);
}

// SmolLM2-135M and Qwen2.5-0.5B. 8 x 1024 tokens of the latter make 5 GB of logits.
void heads(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"T", "C", "V", "gradients"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int64_t gradients : {0, 1, 2}) {
    for (const int64_t tokens : {1024, 2048, 8192}) {
      bench->Args({tokens, 576, 49152, gradients});
      bench->Args({tokens, 896, 151936, gradients});
    }
  }
}

// Logits as a language has them: token v of rank r in a shuffled order has -slope log(r + 1), the
// same in every row, plus a normal number of the row's own.
struct LogitLaw {
  double slope;
  double deviation;
};

// What a row keeps at 2^-12, and the probability that it loses: SmolLM2-135M keeps 148 tokens and
// loses 6 % (1,982 tokens of package descriptions); these 195 and 8 % at V = 49,152, 219 and 10 %
// at 151,936.
constexpr LogitLaw kTrained = {.slope = 1.2, .deviation = 3.5};
// A model that knows little more than how frequent words are: 380 and 35 %, 335 and 41 %.
constexpr LogitLaw kUntrained = {.slope = 1, .deviation = 1.5};

void shape_logits(Head& head, const LogitLaw& law) {
  const int64_t channels = head.channels;
  // Products of two uniform numbers of variance 1 / 3.
  const double scale = 3 * law.deviation / std::sqrt(static_cast<double>(channels));
  for (float& hidden : head.hidden.memory) {
    hidden *= static_cast<float>(scale);
  }
  for (int64_t t = 0; t < head.tokens; ++t) {
    head.hidden.memory[static_cast<size_t>(t * channels)] = 1;
  }
  for (int64_t v = 0; v < head.vocabulary; ++v) {
    const auto rank = static_cast<double>(v * 7919 % head.vocabulary);
    head.weight.memory[static_cast<size_t>(v * channels)] =
        static_cast<float>(-law.slope * std::log(rank + 1));
  }
}

// Arguments after those of Head: what is filtered at 2^-12 (0 nothing, 1 dhidden, 2 dweight too),
// whether the vocabulary is sorted, and whether the model is trained.
void filtered(benchmark::State& state) {
  Head head(state);
  shape_logits(head, state.range(6) != 0 ? kTrained : kUntrained);
  std::vector<std::byte> workspace(static_cast<size_t>(
      linear_cross_entropy_workspace_bytes(head.tokens, head.channels, head.vocabulary, true)));
  const LinearCrossEntropyOptions options = {.filter = state.range(4) > 0 ? 0x1p-12f : 0.0f,
                                             .filter_weight_gradient = state.range(4) > 1,
                                             .sort_vocabulary = state.range(5) != 0};
  for (auto _ : state) {
    linear_cross_entropy(TensorView(head.loss.data(), {head.tokens}), head.dhidden_view,
                         head.dweight_view, head.hidden.view, head.weight.view,
                         ConstTensorView(head.labels.data(), {head.tokens}), workspace, options);
  }
  head.report(state);
}

void filters(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"T", "C", "V", "gradients", "filtered", "sorted", "trained"})
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  const auto add = [&](int64_t gradients, int64_t filter, int64_t sorted, int64_t trained) {
    bench->Args({1024, 576, 49152, gradients, filter, sorted, trained});
    bench->Args({384, 896, 151936, gradients, filter, sorted, trained});
  };
  for (const int64_t gradients : {1, 2}) {
    add(gradients, 0, 0, 1);
    for (const int64_t trained : {1, 0}) {
      for (const int64_t sorted : {0, 1}) {
        add(gradients, gradients, sorted, trained);
      }
    }
  }
  add(2, 1, 0, 1);
}

BENCHMARK(filtered)->Apply(filters);
BENCHMARK(without_logits)->Apply(heads);
BENCHMARK(materialised_logits)->Apply(heads);

}  // namespace
}  // namespace flashloom
