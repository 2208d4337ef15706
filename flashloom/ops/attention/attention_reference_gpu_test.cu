#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_run.cuh"

// The float64 reference on a GPU against its definition on the CPU: the whole contract. Then the
// fast kernels against it, on sequences of the length that people use.

namespace flashloom {
namespace {

using attention_test::check_laws;
using attention_test::ContractCase;
using attention_test::ContractCases;
using attention_test::DeviceExecutor;
using attention_test::distance;
using attention_test::Executor;
using attention_test::Law;
using attention_test::pointers_to;
using attention_test::Results;
using attention_test::Tensor;
using attention_test::with_backend;

class AttentionReferenceGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!attention_test::has_gpu()) {
      GTEST_SKIP() << "no GPU on this host";
    }
    const int asked = GTEST_FLAG_GET(random_seed);
    seed_ = asked != 0 ? static_cast<uint64_t>(asked) : std::random_device()() % 99999;
    std::printf("random seed %d\n", static_cast<int>(seed_));
    seed_ *= 1000;
  }

  uint64_t seed_ = 0;
};

double largest(const Tensor& values) {
  double most = 0;
  for (int64_t i = 0; i < values.size(); ++i) {
    const double value = std::fabs(values.get(i));
    most = std::isfinite(value) ? std::max(most, value) : most;
  }
  return most;
}

// Sums in another order differ by some units of the last place; what is stored in f32 by one of
// its.
void expect_near(const Tensor& ours, const Tensor& exact, const char* name) {
  if (!ours.view()) {
    return;
  }
  const double unit = ours.view().dtype == DType::f64 ? 1e-12 : 1e-6;
  EXPECT_LE(distance(ours, exact), unit * (1 + largest(exact))) << name;
}

TEST_F(AttentionReferenceGpu, EqualsTheReferenceOnTheCpu) {
  for (const auto& [dtype, dim] :
       {std::pair(DType::f32, 40), std::pair(DType::bf16, 24), std::pair(DType::f64, 33)}) {
    const ContractCases contract(dtype == DType::f64 ? DType::f32 : dtype, dim, 20, seed_ += 100);
    int checked = 0;
    for (ContractCase test : contract.cases()) {
      SCOPED_TRACE(test.name + ", " + std::string(dtype_name(dtype)));
      test.call.dtype = dtype;
      const auto run = [&](const Executor& executor) {
        return test.call.run(AttentionBackend::reference, true, executor, DType::f64, DType::f64);
      };
      const Results exact = run(Executor());
      const Results ours = run(DeviceExecutor());
      expect_near(ours.out, exact.out, "out");
      expect_near(ours.lse, exact.lse, "lse");
      expect_near(ours.entropy, exact.entropy, "entropy");
      expect_near(ours.dq, exact.dq, "dq");
      expect_near(ours.dk, exact.dk, "dk");
      expect_near(ours.dv, exact.dv, "dv");
      expect_near(ours.dsinks, exact.dsinks, "dsinks");
      expect_near(ours.dbias, exact.dbias, "dbias");
      ++checked;
    }
    EXPECT_GT(checked, 40);
  }
}

// Every kind of gate and what it writes; every choice equals the CPU's.
TEST_F(AttentionReferenceGpu, GatesKeepTheSameTiles) {
  for (const auto kind : {AttentionGate::Kind::absolute, AttentionGate::Kind::relative}) {
    for (const int64_t right : {-1, 0}) {
      SCOPED_TRACE(std::to_string(static_cast<int>(kind)) + ", right " + std::to_string(right));
      const int64_t rows = kind == AttentionGate::Kind::absolute ? 40 : 4;
      const Tensor q = std::move(Tensor(DType::f32, {2, 4, 130, 16}).random(seed_ + 1));
      const Tensor k = std::move(Tensor(DType::f32, {2, 2, 800, 16}).random(seed_ + 2));
      const Tensor v = std::move(Tensor(DType::f32, {2, 2, 800, 20}).random(seed_ + 3));
      const Tensor sinks = std::move(Tensor(DType::f32, {4}).random(seed_ + 4));
      Tensor thresholds(DType::f32, {4, 2});
      for (int64_t h = 0; h < 4; ++h) {
        const double first = kind == AttentionGate::Kind::absolute ? 3.2 : 0.1;
        thresholds.set(2 * h, first + 0.1 * static_cast<double>(h));
        thresholds.set(2 * h + 1, first);
      }

      struct Outcome {
        Tensor out{DType::f64, {2, 4, 130, 20}};
        Tensor lse{DType::f32, {2, 4, 130}};
        Tensor entropy{DType::f32, {2, 4, 130}};
        Tensor dropped{DType::f32, {2, 4, 130}};
        Tensor kept;
      };

      const auto run = [&](const Executor& executor) {
        Outcome outcome;
        outcome.kept = Tensor(DType::i32, {2, 4, (130 + rows - 1) / rows, 2});  // 34 tiles of 24
        AttentionOptions options;
        options.visibility.right = right;
        options.score.sinks = sinks;
        options.execution.backend = AttentionBackend::reference;
        options.gate = {.kind = kind,
                        .threshold = thresholds,
                        .rows = rows,
                        .keys = 24,
                        .kept = outcome.kept,
                        .dropped_mass = outcome.dropped};
        executor.forward({.out = outcome.out, .lse = outcome.lse, .entropy = outcome.entropy},
                         {q, k, v}, options);
        return outcome;
      };
      const Outcome exact = run(Executor());
      const Outcome ours = run(DeviceExecutor());
      EXPECT_TRUE(ours.kept.same_bits(exact.kept));
      expect_near(ours.out, exact.out, "out");
      expect_near(ours.lse, exact.lse, "lse");
      expect_near(ours.entropy, exact.entropy, "entropy");
      expect_near(ours.dropped, exact.dropped, "dropped mass");
      EXPECT_GT(largest(exact.dropped), 0);
    }
  }
}

// 8-bit storage of everything that may be: the same bits as the CPU's.
TEST_F(AttentionReferenceGpu, EightBitStorage) {
  for (const bool scalars : {true, false}) {
    const auto draw = [&](int64_t heads, int64_t rows, uint64_t seed) {
      return std::move(Tensor(DType::e4m3, {2, heads, rows, 32}).random(seed, 4));
    };
    const Tensor q = draw(4, 50, seed_ + 1);
    const Tensor k = draw(2, 70, seed_ + 2);
    const Tensor v = draw(2, 70, seed_ + 3);
    const auto scale = [&](int64_t heads, double least) {
      Tensor scales = scalars ? Tensor(DType::f32, {1}) : Tensor(DType::f32, {2, heads});
      for (int64_t i = 0; i < scales.size(); ++i) {
        scales.set(i, least * (1 + 0.1 * static_cast<double>(i)));
      }
      return scales;
    };
    const Tensor q_scale = scale(4, 0.25), k_scale = scale(2, 0.2), v_scale = scale(2, 0.3);
    const Tensor out_scale = scale(4, 0.01);

    struct Outcome {
      Tensor out{DType::e4m3, {2, 4, 50, 32}};
      Tensor amax{DType::f32, {1}};
    };

    const auto run = [&](const Executor& executor) {
      Outcome outcome;
      AttentionOptions options;
      options.execution.backend = AttentionBackend::reference;
      options.fp8 = {.q_scale = q_scale,
                     .k_scale = k_scale,
                     .v_scale = v_scale,
                     .out_scale = out_scale,
                     .amax_out = outcome.amax};
      executor.forward({.out = outcome.out}, {q, k, v}, options);
      return outcome;
    };
    const Outcome exact = run(Executor());
    const Outcome ours = run(DeviceExecutor());
    EXPECT_TRUE(ours.out.same_bits(exact.out));
    EXPECT_TRUE(ours.amax.same_bits(exact.amax));
    EXPECT_GT(exact.amax.get(0), 0);
  }
}

TEST_F(AttentionReferenceGpu, PagedKeysAndWideRows) {
  const Tensor q = std::move(Tensor(DType::bf16, {2, 4, 9, 300}).random(seed_ + 1));
  const Tensor k = std::move(Tensor(DType::bf16, {12, 2, 7, 300}).random(seed_ + 2));
  const Tensor v = std::move(Tensor(DType::bf16, {12, 2, 7, 500}).random(seed_ + 3));
  const Tensor pages = Tensor::index({2, 6}, {3, 9, 1, 0, 2, 4, 11, 5, 6, 10, 7, 8});
  const Tensor used = Tensor::index({2}, {40, 13});
  AttentionOptions options;
  options.visibility.right = 0;
  options.execution.backend = AttentionBackend::reference;
  options.sequences = {.used_key = used, .page_table = pages, .max_key = 40, .page_size = 7};
  Tensor exact(DType::f64, {2, 4, 9, 500});
  Tensor ours(DType::f64, {2, 4, 9, 500});
  Executor().forward({.out = exact}, {q, k, v}, options);
  DeviceExecutor().forward({.out = ours}, {q, k, v}, options);
  expect_near(ours, exact, "out");
}

class FastExecutor : public DeviceExecutor {
 protected:
  void call_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, std::span<std::byte> workspace,
                     const AttentionOptions& options) const override {
    AttentionOptions fast = options;
    fast.execution.deterministic = false;
    DeviceExecutor::call_backward(gradients, inputs, saved, workspace, fast);
  }
};

struct LongCase {
  const char* name;
  int64_t dim, length;
  AttentionVisibility visibility;
};

// The law on long sequences, grouped-query, ends that no tile divides.
TEST_F(AttentionReferenceGpu, LongSequencesHoldTheLaw) {
  std::vector<ContractCase> cases;
  for (const LongCase& test :
       {LongCase{"causal", 64, 4001, {.right = 0}}, LongCase{"full", 128, 4096, {}},
        LongCase{"window", 64, 8000, {64, 64}}, LongCase{"causal", 128, 6007, {.right = 0}},
        LongCase{"causal", 256, 2050, {.right = 0}}, LongCase{"window", 128, 5000, {1000, 0}}}) {
    ContractCase& c = cases.emplace_back();
    c.name = std::string(test.name) + ", D " + std::to_string(test.dim) + ", " +
             std::to_string(test.length) + " tokens";
    c.call = {.heads = 2,
              .key_heads = 1,
              .queries = test.length,
              .keys = test.length,
              .dim = test.dim,
              .value_dim = test.dim,
              .dtype = DType::bf16,
              .seed = seed_ += 10};
    c.call.options.visibility = test.visibility;
  }
  check_laws(pointers_to(cases), true, [](const ContractCase& c, const Law& law) {
    SCOPED_TRACE(c.name);
    law.expect(AttentionBackend::automatic, DeviceExecutor());
    law.expect(AttentionBackend::automatic, FastExecutor());
  });
}

}  // namespace
}  // namespace flashloom
