#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/attention_test_device_loops.h"
#include "flashloom/ops/attention/attention_test_law.h"

// What test programs on a GPU share: new inputs in every run, the two sides of the law on the GPU.

#define FLASHLOOM_NEEDS_GPU()                  \
  if (!flashloom::attention_test::has_gpu()) { \
    GTEST_SKIP() << "no GPU on this host";     \
  }                                            \
  static_assert(true)

namespace flashloom::attention_test {

/// A seed for a run's inputs, printed; --gtest_random_seed=N repeats run N.
inline uint64_t fresh_seed() {
  const int asked = GTEST_FLAG_GET(random_seed);
  const uint64_t seed = asked != 0 ? static_cast<uint64_t>(asked) : std::random_device()() % 99999;
  std::printf("random seed %d\n", static_cast<int>(seed));
  return seed * 1000;
}

/// y of the law, on the device.
class DeviceLoops : public DeviceExecutor {
 protected:
  void call_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    std::span<std::byte> workspace,
                    const AttentionOptions& options) const override {
    device_loops_forward(outputs, inputs, workspace, options, {own_stream()});
  }

  void call_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, std::span<std::byte> workspace,
                     const AttentionOptions& options) const override {
    device_loops_backward(gradients, inputs, saved, workspace, options, {own_stream()});
  }
};

/// The law of a call. In f32, and where logits are extreme, the errors are those of sums in f32:
/// then y sums in the order of plain loops, on the CPU (on the device a warp sums side by side).
inline Law law_of(const Case& call, bool with_backward) {
  Case quick = call;
  quick.sums = true;
  std::shared_ptr<const Executor> loops = std::make_shared<DeviceLoops>();
  if (call.dtype == DType::f32 || call.deviation > 1) {
    loops = std::make_shared<RoundedLoops>();
  }
  return Law(quick, with_backward, std::make_shared<DeviceExecutor>(), loops);
}

inline std::vector<const ContractCase*> pointers_to(const std::vector<ContractCase>& cases) {
  std::vector<const ContractCase*> pointers;
  for (const ContractCase& c : cases) {
    pointers.push_back(&c);
  }
  return pointers;
}

/// Calls check(case, its law) for all cases, on all cores: drawing and comparing numbers takes
/// longer than the kernels.
template <class Check>
void check_laws(const std::vector<const ContractCase*>& cases, bool with_backward,
                const Check& check) {
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      set_thread_count(1);
      for (size_t n = next++; n < cases.size(); n = next++) {
        check(*cases[n], law_of(cases[n]->call, with_backward));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  set_thread_count(0);
  std::printf("largest errors as shares of the law: %s\n", Law::shares().c_str());
}

/// Runs all cases on the Hopper kernels; returns how many they took.
inline int expect_sm90_law(const std::vector<ContractCase>& cases, bool with_backward) {
  std::atomic<int> covered = 0;
  check_laws(pointers_to(cases), with_backward, [&](const ContractCase& c, const Law& law) {
    SCOPED_TRACE(c.name + ", D " + std::to_string(c.call.dim));
    try {
      law.expect(AttentionBackend::sm90, DeviceExecutor());
      ++covered;
    } catch (const Unsupported& refusal) {
      std::printf("  %s: %s\n", c.name.c_str(), refusal.what());
    }
  });
  return covered;
}

/// A packed batch whose rows behind the used lengths hold NaN; nothing of it may reach a result.
inline ContractCase packed_with_nan_behind(int64_t dim, AttentionVisibility visibility,
                                           uint64_t seed) {
  static const std::vector<int32_t> used_query = {100, 0, 1, 128, 190, 5};
  static const std::vector<int32_t> used_key = {130, 3, 0, 128, 255, 64};
  static const std::vector<int32_t> offsets = {0, 140, 150, 160, 400, 660, 780};
  static const Tensor queries = Tensor::index({6}, used_query);
  static const Tensor keys = Tensor::index({6}, used_key);
  ContractCase c;
  c.name = "packed, left " + std::to_string(visibility.left) + ", right " +
           std::to_string(visibility.right);
  c.call = {.batch = 1,
            .heads = 4,
            .key_heads = 2,
            .queries = 780,
            .keys = 780,
            .dim = dim,
            .value_dim = dim,
            .dtype = DType::bf16,
            .seed = seed + static_cast<uint64_t>(dim)};
  c.call.packed_queries = offsets;
  c.call.packed_keys = offsets;
  c.call.options.visibility = visibility;
  c.call.options.sequences.used_query = queries;
  c.call.options.sequences.used_key = keys;
  c.call.change = [](Tensor& rows, char name) {
    const TensorView& view = rows.view();
    const auto& used = name == 'q' || name == 'd' ? used_query : used_key;
    for (int64_t i = 0; i < rows.size(); ++i) {
      const int64_t row = i / view.dim(2) % view.dim(1);
      for (size_t n = 0; n < used.size(); ++n) {
        if (row >= offsets[n] + used[n] && row < offsets[n + 1]) {
          rows.set(i, std::numeric_limits<double>::quiet_NaN());
        }
      }
    }
  };
  return c;
}

}  // namespace flashloom::attention_test
