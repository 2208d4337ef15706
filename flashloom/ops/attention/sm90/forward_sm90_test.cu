#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention_test_run.cuh"

// The Hopper forward kernels at their own tiles and widths, beyond what attention_gpu_test.cu asks
// of every backend.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::ContractCase;
using attention_test::ContractCases;
using attention_test::DeviceExecutor;
using attention_test::fresh_seed;
using attention_test::Law;
using attention_test::laws_of;
using attention_test::Tensor;

// Runs all cases on the Hopper kernels; returns how many they took.
int expect_law(const std::vector<const ContractCase*>& cases) {
  const std::vector<std::unique_ptr<Law>> laws = laws_of(cases, false);
  int covered = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(cases[i]->name + ", D " + std::to_string(cases[i]->call.dim));
    try {
      laws[i]->expect(AttentionBackend::sm90, DeviceExecutor());
      ++covered;
    } catch (const Unsupported& refusal) {
      std::printf("  %s: %s\n", cases[i]->name.c_str(), refusal.what());
    }
  }
  return covered;
}

class ForwardSm90 : public testing::TestWithParam<std::tuple<DType, int, int>> {};

TEST_P(ForwardSm90, HoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const auto& [dtype, dim, tile] = GetParam();
  const ContractCases contract(dtype, dim, tile, fresh_seed());
  std::vector<const ContractCase*> cases;
  for (const ContractCase& c : contract.cases()) {
    cases.push_back(&c);
  }
  const int covered = expect_law(cases);
  std::printf("%d of %zu calls\n", covered, cases.size());
  EXPECT_GT(covered, 36);
}

INSTANTIATE_TEST_SUITE_P(
    Contract, ForwardSm90,
    testing::Values(std::tuple(DType::bf16, 64, 192), std::tuple(DType::bf16, 128, 128),
                    std::tuple(DType::f16, 64, 128), std::tuple(DType::f16, 128, 128),
                    std::tuple(DType::bf16, 40, 128), std::tuple(DType::bf16, 96, 144),
                    std::tuple(DType::bf16, 112, 128), std::tuple(DType::bf16, 160, 112),
                    std::tuple(DType::bf16, 192, 112), std::tuple(DType::bf16, 256, 80),
                    std::tuple(DType::f16, 256, 128)),
    [](const testing::TestParamInfo<std::tuple<DType, int, int>>& info) {
      return std::string(dtype_name(std::get<0>(info.param))) + "_" +
             std::to_string(std::get<1>(info.param));
    });

// Rows of a packed batch behind the used lengths hold NaN; nothing of it may reach a result.
TEST(ForwardSm90Borders, NanBehindPackedDocumentsStaysThere) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  const std::vector<int32_t> used_query = {100, 0, 1, 128, 190, 5};
  const std::vector<int32_t> used_key = {130, 3, 0, 128, 255, 64};
  const std::vector<int32_t> offsets = {0, 140, 150, 160, 400, 660, 780};
  const Tensor queries = Tensor::index({6}, used_query);
  const Tensor keys = Tensor::index({6}, used_key);
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (const int64_t right : {-1, 0}) {
      ContractCase c;
      c.name = "packed, right " + std::to_string(right);
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
      c.call.options.visibility.right = right;
      c.call.options.sequences.used_query = queries;
      c.call.options.sequences.used_key = keys;
      c.call.change = [&](Tensor& rows, char name) {
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
      cases.push_back(c);
    }
  }
  std::vector<const ContractCase*> pointers;
  for (const ContractCase& c : cases) {
    pointers.push_back(&c);
  }
  EXPECT_EQ(expect_law(pointers), static_cast<int>(cases.size()));
}

// Windows, whose tiles are walked by fewer warpgroups, and short rows beside long tiles.
TEST(ForwardSm90Borders, WindowsAtEveryOffsetHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  RandomSequence random(seed, RandomStream::test);
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 128}) {
    for (int i = 0; i < 24; ++i) {
      ContractCase c;
      const auto queries = static_cast<int64_t>(1 + random.below(700));
      const auto keys = static_cast<int64_t>(1 + random.below(700));
      const auto left = static_cast<int64_t>(random.below(200)) - 1;
      const auto right = static_cast<int64_t>(random.below(200)) - 1;
      c.call = {.batch = 2,
                .heads = 4,
                .key_heads = 2,
                .queries = queries,
                .keys = keys,
                .dim = dim,
                .value_dim = dim,
                .dtype = DType::bf16,
                .seed = seed + 7};
      c.call.options.visibility = {left, right};
      if (i % 2 == 0) {
        c.call.options.positions.offset = static_cast<int64_t>(random.below(600)) - 300;
      }
      c.name = std::to_string(queries) + " x " + std::to_string(keys) + ", window " +
               std::to_string(left) + ", " + std::to_string(right);
      cases.push_back(c);
    }
  }
  std::vector<const ContractCase*> pointers;
  for (const ContractCase& c : cases) {
    pointers.push_back(&c);
  }
  EXPECT_EQ(expect_law(pointers), static_cast<int>(cases.size()));
}

}  // namespace
}  // namespace flashloom
