#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/attention_test_run.cuh"

// The Hopper backward kernels at their own tiles and widths, beyond what attention_gpu_test.cu asks
// of every backend.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::ContractCase;
using attention_test::ContractCases;
using attention_test::DeviceExecutor;
using attention_test::expect_sm90_law;
using attention_test::fresh_seed;
using attention_test::packed_with_nan_behind;
using attention_test::Results;

// At most 1.2 times the law has been seen: kernels up to 64 and from 192 columns on take dS from
// the P that they rounded for dV.
constexpr double kSlack = 1.5;

class BackwardSm90 : public testing::TestWithParam<std::tuple<DType, int, int>> {};

TEST_P(BackwardSm90, HoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const auto& [dtype, dim, tile] = GetParam();
  const ContractCases contract(dtype, dim, tile, fresh_seed());
  const int covered = expect_sm90_law(contract.cases(), true, kSlack);
  std::printf("%d of %zu calls\n", covered, contract.cases().size());
  EXPECT_GT(covered, 30);
}

// (dtype, head dimension, rows of a tile): every kernel at its full width and below.
INSTANTIATE_TEST_SUITE_P(
    Contract, BackwardSm90,
    testing::Values(std::tuple(DType::bf16, 40, 64), std::tuple(DType::f16, 64, 128),
                    std::tuple(DType::bf16, 72, 64), std::tuple(DType::bf16, 96, 128),
                    std::tuple(DType::bf16, 104, 128), std::tuple(DType::f16, 128, 128),
                    std::tuple(DType::bf16, 160, 64), std::tuple(DType::f16, 192, 128),
                    std::tuple(DType::bf16, 256, 64)),
    [](const testing::TestParamInfo<std::tuple<DType, int, int>>& info) {
      return std::string(dtype_name(std::get<0>(info.param))) + "_" +
             std::to_string(std::get<1>(info.param));
    });

Case random_call(RandomSequence& random, int64_t dim, int64_t value_dim, uint32_t longest) {
  Case call = {.batch = 2,
               .heads = 4,
               .key_heads = 2,
               .queries = static_cast<int64_t>(1 + random.below(longest)),
               .keys = static_cast<int64_t>(1 + random.below(longest)),
               .dim = dim,
               .value_dim = value_dim,
               .dtype = DType::bf16,
               .seed = random.below(1u << 30)};
  call.options.visibility = {static_cast<int64_t>(random.below(200)) - 1,
                             static_cast<int64_t>(random.below(200)) - 1};
  if (random.below(2) == 0) {
    call.options.positions.offset = static_cast<int64_t>(random.below(600)) - 300;
  }
  return call;
}

// Keys and values of different widths, windows at every offset; both modes.
TEST(BackwardSm90Borders, WindowsAtEveryOffsetHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  std::vector<ContractCase> cases;
  const std::pair<int64_t, int64_t> widths[] = {{64, 64},  {96, 96},   {128, 128}, {256, 256},
                                                {64, 128}, {192, 128}, {24, 16},   {72, 96}};
  for (const auto& [dim, value_dim] : widths) {
    for (int i = 0; i < 8; ++i) {
      ContractCase c;
      c.call = random_call(random, dim, value_dim, 700);
      c.call.options.execution.deterministic = i % 2 == 0;
      if (i % 4 == 1) {
        c.call.options.score.scale = -0.1f;
      }
      c.name = std::to_string(c.call.queries) + " x " + std::to_string(c.call.keys) + ", window " +
               std::to_string(c.call.options.visibility.left) + ", " +
               std::to_string(c.call.options.visibility.right) + ", values " +
               std::to_string(value_dim);
      cases.push_back(c);
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, true, kSlack), static_cast<int>(cases.size()));
}

// Rows of a packed batch behind the used lengths hold NaN; nothing of it may reach a result.
TEST(BackwardSm90Borders, NanBehindPackedDocumentsStaysThere) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (const int64_t left : {-1, 50}) {
      cases.push_back(packed_with_nan_behind(dim, {.left = left, .right = 0}, seed));
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, true, kSlack), static_cast<int>(cases.size()));
}

// 30 runs of every kernel in deterministic mode, grouped-query heads among them.
TEST(BackwardSm90Determinism, RepeatedRunsGiveTheSameBits) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (const int64_t right : {-1, 0}) {
      for (const float softcap : {0.0f, 20.0f}) {
        SCOPED_TRACE("D " + std::to_string(dim) + ", right " + std::to_string(right) +
                     ", softcap " + std::to_string(softcap));
        Case call = {.batch = 2,
                     .heads = 8,
                     .key_heads = 2,
                     .queries = 700,
                     .keys = 900,
                     .dim = dim,
                     .value_dim = dim,
                     .dtype = DType::bf16,
                     .seed = seed};
        call.options.visibility.right = right;
        call.options.score.softcap = softcap;
        call.options.execution.deterministic = true;
        const auto run = [&] {
          return call.run(AttentionBackend::sm90, true, DeviceExecutor(), DType::bf16, DType::bf16);
        };
        const Results first = run();
        for (int i = 1; i < 30; ++i) {
          const Results again = run();
          ASSERT_TRUE(again.dq.same_bits(first.dq)) << i;
          ASSERT_TRUE(again.dk.same_bits(first.dk)) << i;
          ASSERT_TRUE(again.dv.same_bits(first.dv)) << i;
        }
      }
    }
  }
}

// Small calls of every kernel for compute-sanitizer.
TEST(BackwardSm90Sanitizers, SmallCalls) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (int i = 0; i < 4; ++i) {
      ContractCase c;
      c.call = random_call(random, dim, dim, 400);
      c.call.heads = 2;
      if (i < 2) {
        c.call.options.visibility = {-1, i - 1};
        c.call.keys += 256;  // beyond what the kernels for few keys take
      }
      c.call.options.execution.deterministic = i % 2 == 0;
      c.call.options.score.softcap = i == 3 ? 10.0f : 0.0f;
      c.name = std::to_string(c.call.queries) + " x " + std::to_string(c.call.keys) + ", " +
               std::to_string(i);
      cases.push_back(c);
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, true, kSlack), static_cast<int>(cases.size()));
}

}  // namespace
}  // namespace flashloom
