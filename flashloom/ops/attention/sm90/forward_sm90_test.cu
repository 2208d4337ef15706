#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_run.cuh"

// The Hopper forward kernels at their own tiles and widths, beyond what attention_gpu_test.cu asks
// of every backend.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::ContractCase;
using attention_test::ContractCases;
using attention_test::expect_sm90_law;
using attention_test::fresh_seed;
using attention_test::packed_with_nan_behind;
using attention_test::RandomBlocks;

class ForwardSm90 : public testing::TestWithParam<std::tuple<DType, int, int>> {};

TEST_P(ForwardSm90, HoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const auto& [dtype, dim, tile] = GetParam();
  const ContractCases contract(dtype, dim, tile, fresh_seed());
  const int covered = expect_sm90_law(contract.cases(), false);
  std::printf("%d of %zu calls\n", covered, contract.cases().size());
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
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (const int64_t right : {-1, 0}) {
      cases.push_back(packed_with_nan_behind(dim, {.right = right}, seed));
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, false), static_cast<int>(cases.size()));
}

// Windows, whose tiles are walked by fewer warpgroups, and short rows beside long tiles.
TEST(ForwardSm90Borders, WindowsAtEveryOffsetHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  RandomSequence random(seed, RandomStream::test);
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (int i = 0; i < 24; ++i) {
      ContractCase c;
      const auto queries = static_cast<int64_t>(1 + random.below(700));
      auto keys = static_cast<int64_t>(1 + random.below(700));
      // Long rows of 96 columns have another kernel.
      keys += dim == 96 && i % 3 == 0 ? 1024 : 0;
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
  EXPECT_EQ(expect_sm90_law(cases, false), static_cast<int>(cases.size()));
}

// Block masks with more tiles of queries than the card has teams of warpgroups, so that each walks
// several; heads of a mask see different keys, and some rows of blocks none.
TEST(ForwardSm90Borders, BlockMasksHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 128, 256}) {
    for (const auto& [block_rows, block_keys] :
         {std::pair{128, 128}, std::pair{256, 128}, std::pair{128, dim > 64 ? 256 : 64}}) {
      for (const int64_t right : {-1, 0}) {
        for (const bool packed : {false, true}) {
          ContractCase c = packed ? packed_with_nan_behind(dim, {.right = right}, seed)
                                  : ContractCase{.name = "full batch", .call = {}};
          if (!packed) {
            c.call = {.batch = 12,
                      .heads = 8,
                      .key_heads = 2,
                      .queries = 717,
                      .keys = 650,
                      .dim = dim,
                      .value_dim = dim,
                      .dtype = DType::bf16,
                      .seed = seed + 11};
            c.call.options.visibility.right = right;
          }
          const int64_t queries = packed ? Case::longest(c.call.packed_queries) : c.call.queries;
          const int64_t keys = packed ? Case::longest(c.call.packed_keys) : c.call.keys;
          const auto mask = std::make_shared<RandomBlocks>(queries, keys, block_rows, block_keys,
                                                           c.call.heads, seed + cases.size());
          c.call.options.blocks = mask->blocks;
          c.kept.push_back(mask);
          // General kernels walk the same lists.
          c.call.options.score.softcap = block_rows == 256 && right == 0 ? 3 : 0;
          c.name +=
              ", blocks of " + std::to_string(block_rows) + " x " + std::to_string(block_keys);
          cases.push_back(c);
        }
      }
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, false), static_cast<int>(cases.size()));
}

__global__ void count_different_bytes(const uint8_t* a, const uint8_t* b, int64_t count,
                                      int* differences) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    if (a[i] != b[i]) {
      atomicAdd(differences, 1);
    }
  }
}

/// Runs the forward pass on all multiprocessors and on two, so that blocks take other tiles one
/// after the other, and compares the results on the device.
struct SharingExecutor : attention_test::DeviceExecutor {
 protected:
  void call_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    std::span<std::byte> workspace,
                    const AttentionOptions& options) const override {
    const TensorView* results[] = {&outputs.out, &outputs.lse};
    const cudaStream_t stream = attention_test::own_stream();
    int* differences = nullptr;
    cuda::check(cudaMallocAsync(&differences, sizeof(int), stream), "cudaMallocAsync");
    cuda::check(cudaMemsetAsync(differences, 0, sizeof(int), stream), "cudaMemsetAsync");
    uint8_t* first[std::size(results)] = {};
    for (const float share : {1.0f, 0.02f}) {
      AttentionOptions own = options;
      own.execution.multiprocessor_share = share;
      DeviceExecutor::call_forward(outputs, inputs, workspace, own);
      for (size_t n = 0; n < std::size(results); ++n) {
        const int64_t bytes = results[n]->bytes();
        auto* data = static_cast<uint8_t*>(results[n]->data);
        if (first[n] == nullptr) {
          cuda::check(cudaMallocAsync(&first[n], static_cast<size_t>(bytes), stream),
                      "cudaMallocAsync");
          cuda::check(cudaMemcpyAsync(first[n], data, static_cast<size_t>(bytes),
                                      cudaMemcpyDeviceToDevice, stream),
                      "cudaMemcpyAsync");
        } else {
          count_different_bytes<<<132, 256, 0, stream>>>(data, first[n], bytes, differences);
        }
      }
    }
    int found = 0;
    cuda::check(cudaMemcpyAsync(&found, differences, sizeof(int), cudaMemcpyDeviceToHost, stream),
                "cudaMemcpyAsync");
    for (uint8_t* copy : first) {
      cudaFreeAsync(copy, stream);
    }
    cudaFreeAsync(differences, stream);
    cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    EXPECT_EQ(found, 0) << "bytes that differ";
  }
};

void expect_same_bits(const Case& call, const std::string& name) {
  SCOPED_TRACE(name);
  call.run(AttentionBackend::sm90, false, SharingExecutor(), DType::bf16, DType::bf16);
}

// Tiles are drawn from a counter, so which tile a block has before another depends on time.
TEST(ForwardSm90Borders, BitsDoNotDependOnWhatABlockDidBefore) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (const int64_t right : {-1, 0}) {
      const std::string name = "D " + std::to_string(dim) + ", right " + std::to_string(right);
      // Up to 64 columns long rows have a kernel of their own.
      for (const int64_t rows : {700, dim == 64 ? 2600 : 512}) {
        Case call = {.batch = 1,
                     .heads = 4,
                     .key_heads = 2,
                     .queries = rows,
                     .keys = rows,
                     .dim = dim,
                     .value_dim = dim,
                     .dtype = DType::bf16,
                     .seed = seed};
        call.options.visibility.right = right;
        expect_same_bits(call, name + ", " + std::to_string(rows) + " rows");
        if (rows == 700) {
          const RandomBlocks mask(rows, rows, 128, 128, call.heads, seed);
          call.options.blocks = mask.blocks;
          expect_same_bits(call, name + ", a block mask");
          call.options.score.softcap = 3;
          expect_same_bits(call, name + ", a block mask and softcap");
        }
      }
      expect_same_bits(packed_with_nan_behind(dim, {.right = right}, seed).call, name + ", packed");
    }
  }
}

}  // namespace
}  // namespace flashloom
