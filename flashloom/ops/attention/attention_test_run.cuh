#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/attention_test_law.h"

// What test programs on a GPU share: new inputs in every run, references on all cores.

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

/// The references of many cases, on all cores: they take longer than the kernels.
inline std::vector<std::unique_ptr<Law>> laws_of(const std::vector<const ContractCase*>& cases,
                                                 bool with_backward) {
  std::vector<std::unique_ptr<Law>> laws(cases.size());
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      set_thread_count(1);
      for (size_t n = next++; n < cases.size(); n = next++) {
        laws[n] = std::make_unique<Law>(cases[n]->call, with_backward, cases[n]->factor);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  set_thread_count(0);
  return laws;
}

}  // namespace flashloom::attention_test
