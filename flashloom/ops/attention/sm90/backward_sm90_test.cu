#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/attention_test_run.cuh"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// The Hopper backward kernels at their own tiles and widths, beyond what attention_gpu_test.cu asks
// of every backend.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::check_laws;
using attention_test::ContractCase;
using attention_test::ContractCases;
using attention_test::DeviceExecutor;
using attention_test::expect_sm90_law;
using attention_test::fresh_seed;
using attention_test::Law;
using attention_test::own_stream;
using attention_test::packed_with_nan_behind;
using attention_test::pointers_to;
using attention_test::RandomBlocks;
using attention_test::SharedOffsetsExecutor;

class BackwardSm90 : public testing::TestWithParam<std::tuple<DType, int, int>> {};

TEST_P(BackwardSm90, HoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const auto& [dtype, dim, tile] = GetParam();
  const ContractCases contract(dtype, dim, tile, fresh_seed());
  const int covered = expect_sm90_law(contract.cases(), true);
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
  EXPECT_EQ(expect_sm90_law(cases, true), static_cast<int>(cases.size()));
}

// More keys a row than the kernels take that add nothing up in memory; dq of what nobody adds to is
// 0.
TEST(BackwardSm90Borders, SumsInMemoryHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  std::vector<ContractCase> cases;
  std::vector<std::unique_ptr<RandomBlocks>> masks;
  for (const int64_t dim : {40, 64, 72, 96, 104, 128}) {
    for (int i = 0; i < 6; ++i) {
      ContractCase c;
      c.call = {.batch = 2,
                .heads = 4,
                .key_heads = i == 0 ? 4 : 2,
                .queries = 500 + random.below(300),
                .keys = 513 + random.below(300),
                .dim = dim,
                .value_dim = dim,
                .dtype = DType::bf16,
                .seed = random.below(1u << 30)};
      c.name = "full";
      if (i == 1) {
        c.name = "rows that see nothing";
        c.call.queries = c.call.keys + 1000;  // so many that no kernel for short rows takes them
        c.call.options.visibility.right = 0;
      } else if (i == 2 || i == 3) {
        c.name = i == 2 ? "f32" : "added to f32";
        c.call.gradient_dtype = DType::f32;
        c.call.accumulate = i == 3;
        c.call.options.visibility.right = i == 3 ? 0 : -1;
      } else if (i == 4) {
        c.name = "window";
        c.call.options.visibility = {600, 30};
      } else if (i == 5) {  // a ninth of the rows of blocks is empty
        c.name = "blocks";
        c.call.queries = 1500 + random.below(100);
        c.call.keys = 129 + random.below(128);
        masks.push_back(std::make_unique<RandomBlocks>(c.call.queries, c.call.keys, 128, 128,
                                                       c.call.heads, c.call.seed));
        c.call.options.blocks = masks.back()->blocks;
      }
      if (dim == 128 && (i == 0 || i == 4)) {  // so many steps that blocks do not stay
        c.call.queries += i == 0 ? 5000 : 10000;
      }
      c.call.options.execution.deterministic = random.below(2) == 0;
      if (i % 2 == 0) {  // blocks that stay take several tiles of keys each
        c.call.options.execution.multiprocessor_share = 0.02F;
      }
      c.name += ", " + std::to_string(c.call.queries) + " x " + std::to_string(c.call.keys) +
                (c.call.options.execution.deterministic ? ", in turn" : "");
      cases.push_back(c);
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, true), static_cast<int>(cases.size()));
}

// So many heads that rows are prepared and sums converted beside the kernel, where there are enough
// tiles of keys for all multiprocessors and where there are two.
TEST(BackwardSm90Borders, ManyHeadsHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  std::vector<ContractCase> cases;
  for (const int64_t dim : {64, 96, 128}) {
    for (int i = 0; i < 6; ++i) {
      ContractCase c;
      const bool few = i >= 4;
      c.call = {.batch = few ? 2 : 8,
                .heads = few ? 4 : 16,
                .key_heads = i % 2 == 0 ? 4
                             : few      ? 2
                                        : 16,
                .queries = 513 + random.below(200),
                .keys = 513 + random.below(200),
                .dim = dim,
                .value_dim = dim,
                .dtype = i % 2 == 0 ? DType::f16 : DType::bf16,
                .seed = random.below(1u << 30)};
      c.call.options.visibility.right = i % 4 < 2 ? 0 : -1;
      c.call.options.execution.deterministic = i % 3 == 0;
      c.call.with_dlse = i % 2 == 1;
      if (few) {
        c.call.options.execution.multiprocessor_share = 0.03F;
      }
      c.name = std::to_string(c.call.batch * c.call.heads) + " heads, " +
               std::to_string(c.call.queries) + " x " + std::to_string(c.call.keys) +
               (c.call.options.execution.deterministic ? ", in turn" : "");
      cases.push_back(c);
    }
  }
  // So many keys that the sums are cleared before; of the last call blocks do not stay.
  for (const auto& [dim, queries, right] :
       {std::tuple(64, 300, -1), std::tuple(64, 700, 0), std::tuple(128, 300, -1),
        std::tuple(128, 700, 0), std::tuple(128, 5300, -1)}) {
    ContractCase c;
    c.call = {.batch = 1,
              .heads = queries > 5000 ? 2 : 6,
              .key_heads = queries > 5000 ? 2 : 3,
              .queries = queries,
              .keys = 4200,
              .dim = dim,
              .value_dim = dim,
              .dtype = DType::bf16,
              .seed = random.below(1u << 30)};
    c.call.options.visibility.right = right;
    c.call.options.execution.multiprocessor_share = 0.03F;
    c.name = "4200 keys, " + std::to_string(queries) + " queries";
    cases.push_back(c);
  }
  EXPECT_EQ(expect_sm90_law(cases, true), static_cast<int>(cases.size()));
}

// Block masks and nothing else, exact widths: blocks that stay walk the lists, several tiles of
// keys each where there are two multiprocessors, or so many heads (the seventh case of a width)
// that rows are prepared beside them on all of the device. In turn, the last heads of a sequence of
// so many start with long columns.
TEST(BackwardSm90Borders, ListsOfBlocksHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  std::vector<ContractCase> cases;
  std::vector<std::unique_ptr<RandomBlocks>> masks;
  for (const int64_t dim : {64, 128}) {
    for (int n = 0; n < 16; ++n) {
      const int i = n % 8;
      ContractCase c;
      const bool many = i == 6;
      const bool own_lists = many && n >= 8;
      c.call = {.batch = own_lists ? 1
                         : many    ? 8
                                   : 2,
                .heads = own_lists ? 96
                         : many    ? 16
                                   : 6,
                .key_heads = own_lists    ? 96
                             : many       ? 16
                             : i % 3 == 2 ? 2
                                          : 6,
                .queries = i == 0 ? 1 : (own_lists ? 400 : 1) + random.below(own_lists ? 200 : 600),
                .keys = i == 1 ? 129 : (many ? 513 : 1) + random.below(many ? 128 : 600),
                .dim = dim,
                .value_dim = dim,
                .dtype = i % 2 == 0 ? DType::bf16 : DType::f16,
                .seed = random.below(1u << 30)};
      const int64_t rows = i < 4 ? 128 : 256;
      const int64_t keys = own_lists || i % 4 < 2 ? 128 : 256;
      masks.push_back(std::make_unique<RandomBlocks>(c.call.queries, c.call.keys, rows, keys,
                                                     c.call.heads, c.call.seed));
      c.call.options.blocks = masks.back()->blocks;
      c.call.with_dlse = i % 3 == 0;
      c.call.options.execution.multiprocessor_share = i < 6 ? 0.02F : 1;
      c.name = std::to_string(c.call.queries) + " x " + std::to_string(c.call.keys) +
               ", blocks of " + std::to_string(rows) + " x " + std::to_string(keys);
      if (n >= 8) {
        c.call.options.execution.deterministic = true;
        c.name += ", in turn";
      }
      cases.push_back(c);
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, true), static_cast<int>(cases.size()));
}

// Queries and keys that are each other's neighbours: the kernel for narrow bands, which takes no
// grouped heads.
TEST(BackwardSm90Borders, NarrowBandsHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  const std::pair<int64_t, int64_t> widths[] = {{64, 64}, {40, 24}, {16, 64}};
  std::vector<ContractCase> cases;
  for (const int64_t rows : {1, 63, 64, 65, 129, 700, 2300}) {
    for (const auto& [dim, value_dim] : widths) {
      ContractCase c;
      c.call = {.batch = 2,
                .heads = 3,
                .key_heads = 3,
                .queries = rows,
                .keys = rows,
                .dim = dim,
                .value_dim = value_dim,
                .dtype = rows % 2 == 0 ? DType::f16 : DType::bf16,
                .seed = random.below(1u << 30)};
      c.call.options.visibility = {dim == 64 ? 64 : static_cast<int64_t>(1 + random.below(64)),
                                   rows == 65 ? 64 : static_cast<int64_t>(1 + random.below(64))};
      c.call.with_dlse = dim == 40;
      if (dim == 16) {
        c.call.gradient_dtype = DType::f32;
        c.call.accumulate = rows > 100;
      }
      if (rows > 600) {
        c.call.batch = 1;
        c.call.packed_queries = {0, 1, 66, 66, 130, 603, static_cast<int32_t>(rows)};
        c.call.packed_keys = c.call.packed_queries;
      }
      c.name = std::to_string(rows) + " rows, window " +
               std::to_string(c.call.options.visibility.left) + ", " +
               std::to_string(c.call.options.visibility.right);
      cases.push_back(c);
    }
  }
  // 9 tiles a sequence, 10 a block: blocks go on from sequence to sequence.
  ContractCase many = {.name = "many heads",
                       .call = {.batch = 36,
                                .heads = 8,
                                .key_heads = 8,
                                .queries = 520,
                                .keys = 520,
                                .dim = 8,
                                .value_dim = 8,
                                .dtype = DType::bf16,
                                .seed = random.below(1u << 30)}};
  many.call.options.visibility = {64, 64};
  cases.push_back(many);
  check_laws(pointers_to(cases), true, [](const ContractCase& c, const Law& law) {
    SCOPED_TRACE(c.name + ", D " + std::to_string(c.call.dim));
    law.expect(AttentionBackend::sm90, SharedOffsetsExecutor());
  });
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
  EXPECT_EQ(expect_sm90_law(cases, true), static_cast<int>(cases.size()));
}

__global__ void count_differences(const uint16_t* a, const uint16_t* b, int64_t count,
                                  int* differences) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    if (a[i] != b[i]) {
      atomicAdd(differences, 1);
    }
  }
}

/// Runs the backward pass 30 times, with other bits in results and workspace before each and every
/// other time on two multiprocessors, and compares what it leaves, on the device.
struct RepeatingExecutor : DeviceExecutor {
 protected:
  void call_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, std::span<std::byte> workspace,
                     const AttentionOptions& options) const override {
    const TensorView* results[] = {&gradients.dq, &gradients.dk, &gradients.dv};
    constexpr size_t kCount = std::size(results);
    const cudaStream_t stream = own_stream();
    uint16_t* first[kCount];
    int* differences = nullptr;  // one number a result
    cuda::check(cudaMallocAsync(&differences, kCount * sizeof(int), stream), "cudaMallocAsync");
    cuda::check(cudaMemsetAsync(differences, 0, kCount * sizeof(int), stream), "cudaMemsetAsync");
    for (int i = 0; i < 30; ++i) {
      cuda::check(cudaMemsetAsync(workspace.data(), 0xff - i, workspace.size(), stream),
                  "cudaMemsetAsync");
      for (const TensorView* result : results) {
        cuda::check(
            cudaMemsetAsync(result->data, 0xff, static_cast<size_t>(result->bytes()), stream),
            "cudaMemsetAsync");
      }
      AttentionOptions own = options;
      own.execution.multiprocessor_share = i % 2 == 0 ? 1 : 0.02F;
      DeviceExecutor::call_backward(gradients, inputs, saved, workspace, own);
      for (size_t n = 0; n < kCount; ++n) {
        const auto bytes = static_cast<size_t>(results[n]->bytes());
        if (i == 0) {
          cuda::check(cudaMallocAsync(&first[n], bytes, stream), "cudaMallocAsync");
          cuda::check(
              cudaMemcpyAsync(first[n], results[n]->data, bytes, cudaMemcpyDeviceToDevice, stream),
              "cudaMemcpyAsync");
        } else {
          count_differences<<<132, 256, 0, stream>>>(static_cast<uint16_t*>(results[n]->data),
                                                     first[n], results[n]->size(), differences + n);
        }
      }
    }
    int found[kCount];
    cuda::check(cudaMemcpyAsync(found, differences, sizeof(found), cudaMemcpyDeviceToHost, stream),
                "cudaMemcpyAsync");
    for (uint16_t* copy : first) {
      cudaFreeAsync(copy, stream);
    }
    cudaFreeAsync(differences, stream);
    cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    for (size_t n = 0; n < kCount; ++n) {
      EXPECT_EQ(found[n], 0) << "numbers of result " << n << " that differ in some run";
    }
  }
};

// 30 runs of every kernel in deterministic mode, grouped-query heads among them.
class BackwardSm90Determinism : public testing::TestWithParam<int64_t> {};

TEST_P(BackwardSm90Determinism, RepeatedRunsGiveTheSameBits) {
  FLASHLOOM_NEEDS_GPU();
  const int64_t dim = GetParam();
  const uint64_t seed = fresh_seed();
  for (const int64_t right : {-1, 0}) {
    for (const float softcap : {0.0f, 20.0f}) {
      // 64 heads of 8 tiles of keys: under a causal mask some start with late keys.
      for (const int64_t key_heads : {2, 32}) {
        SCOPED_TRACE("right " + std::to_string(right) + ", softcap " + std::to_string(softcap) +
                     ", key-value heads " + std::to_string(key_heads));
        Case call = {.batch = 2,
                     .heads = key_heads == 2 ? 8 : 32,
                     .key_heads = key_heads,
                     .queries = 700,
                     .keys = 900,
                     .dim = dim,
                     .value_dim = dim,
                     .dtype = DType::bf16,
                     .seed = seed};
        call.options.visibility.right = right;
        call.options.score.softcap = softcap;
        call.options.execution.deterministic = true;
        call.run(AttentionBackend::sm90, true, RepeatingExecutor(), DType::bf16, DType::bf16);
      }
    }
  }
  // Lists of a block mask, one or two heads or many side by side, the last ones' long columns
  // first.
  for (const int64_t key_heads : {2, 32}) {
    if (dim > 128) {
      break;
    }
    const bool few = key_heads == 2;
    Case call = {.batch = few ? 2 : 1,
                 .heads = few ? 8 : 32,
                 .key_heads = key_heads,
                 .queries = few ? 4900 : 1900,
                 .keys = 2100,
                 .dim = dim,
                 .value_dim = dim,
                 .dtype = DType::bf16,
                 .seed = seed};
    const RandomBlocks mask(call.queries, call.keys, 128, 128, call.heads, seed);
    call.options.blocks = mask.blocks;
    call.options.execution.deterministic = true;
    call.run(AttentionBackend::sm90, true, RepeatingExecutor(), DType::bf16, DType::bf16);
  }
  if (dim == 128) {  // so many steps that blocks do not stay; the first head starts with late keys
    Case call = {.batch = 1,
                 .heads = 3,
                 .key_heads = 3,
                 .queries = 6500,
                 .keys = 8500,
                 .dim = dim,
                 .value_dim = dim,
                 .dtype = DType::bf16,
                 .seed = seed};
    call.options.visibility.right = 0;
    call.options.execution.deterministic = true;
    call.run(AttentionBackend::sm90, true, RepeatingExecutor(), DType::bf16, DType::bf16);
  }
}

// 40 columns: the kernel of 64 with checks.
INSTANTIATE_TEST_SUITE_P(Widths, BackwardSm90Determinism,
                         testing::Values(40, 64, 96, 128, 192, 256),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace flashloom
