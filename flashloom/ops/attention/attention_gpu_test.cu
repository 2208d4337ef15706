#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention_test_run.cuh"

// The GPU kernels against the float64 reference, on the calls of attention_test_contract.h, with
// inputs that are new in every run (--gtest_random_seed=N repeats one).

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::check_laws;
using attention_test::ContractCase;
using attention_test::ContractCases;
using attention_test::DeviceExecutor;
using attention_test::distance;
using attention_test::fresh_seed;
using attention_test::Law;
using attention_test::law_of;
using attention_test::Layout;
using attention_test::Results;
using attention_test::Tensor;
using attention_test::with_backend;

constexpr AttentionBackend kBackends[] = {AttentionBackend::automatic, AttentionBackend::portable,
                                          AttentionBackend::sm90};

class AttentionGpu : public testing::TestWithParam<std::tuple<DType, int, int>> {};

// Every call on every backend that takes it; automatic takes all.
TEST_P(AttentionGpu, HoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const auto& [dtype, dim, share] = GetParam();
  const ContractCases contract(dtype, dim, 64, fresh_seed());
  std::vector<const ContractCase*> cases;
  for (size_t i = static_cast<size_t>(dim / 32); i < contract.cases().size() + 8; ++i) {
    if (i % static_cast<size_t>(share) == 0) {
      cases.push_back(&contract.cases()[i % contract.cases().size()]);
    }
  }
  std::mutex mutex;
  std::map<AttentionBackend, int> covered;
  std::string refusals;
  check_laws(cases, true, [&](const ContractCase& c, const Law& law) {
    for (const AttentionBackend backend : kBackends) {
      SCOPED_TRACE(c.name + ", " + std::string(attention_backend_name(backend)));
      try {
        law.expect(backend, DeviceExecutor());
        const std::lock_guard lock(mutex);
        ++covered[backend];
      } catch (const Unsupported& refusal) {
        EXPECT_NE(backend, AttentionBackend::automatic) << refusal.what();
        const std::lock_guard lock(mutex);
        refusals += "  " + c.name + ": " + refusal.what() + "\n";
      }
    }
  });
  std::printf("%zu calls; sm90 takes %d, portable %d\n", cases.size(),
              covered[AttentionBackend::sm90], covered[AttentionBackend::portable]);
  EXPECT_GT(covered[AttentionBackend::portable], 0);
  EXPECT_TRUE(covered[AttentionBackend::sm90] > 0 || dtype == DType::f32 || dim > 128 ||
              dim % 64 != 0)
      << refusals;
}

// (dtype, head dimension, every n-th case)
INSTANTIATE_TEST_SUITE_P(
    Contract, AttentionGpu,
    testing::Values(std::tuple(DType::bf16, 64, 1), std::tuple(DType::bf16, 128, 1),
                    std::tuple(DType::f16, 64, 3), std::tuple(DType::f16, 128, 3),
                    std::tuple(DType::bf16, 256, 3), std::tuple(DType::bf16, 96, 4),
                    std::tuple(DType::bf16, 192, 5), std::tuple(DType::f32, 64, 1),
                    std::tuple(DType::f32, 128, 5), std::tuple(DType::f32, 256, 7),
                    std::tuple(DType::f32, 24, 4)),
    [](const testing::TestParamInfo<std::tuple<DType, int, int>>& info) {
      return std::string(dtype_name(std::get<0>(info.param))) + "_" +
             std::to_string(std::get<1>(info.param));
    });

TEST(AttentionGpuLayout, AnyStridesHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const bool packed : {false, true}) {
      Case call = {.batch = packed ? 1 : 2,
                   .heads = 4,
                   .key_heads = 2,
                   .queries = 130,
                   .keys = 150,
                   .dim = 64,
                   .value_dim = 64,
                   .dtype = dtype,
                   .seed = seed};
      call.options.visibility.right = 0;
      if (packed) {
        call.packed_queries = {0, 50, 130};
        call.packed_keys = {0, 64, 150};
      }
      const Law law = law_of(call, true);
      for (const Layout layout : {Layout::contiguous, Layout::rows_first, Layout::unaligned}) {
        SCOPED_TRACE(std::string(dtype_name(dtype)) + (packed ? ", packed, layout " : ", layout ") +
                     std::to_string(static_cast<int>(layout)));
        law.expect(AttentionBackend::automatic, DeviceExecutor(layout));
        law.expect(AttentionBackend::portable, DeviceExecutor(layout));
      }
    }
  }
}

TEST(AttentionGpuLayout, PagedKeysHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  for (const int64_t page_size : {1, 7, 16, 64}) {
    for (const int64_t queries : {1, 5, 70}) {
      const int64_t pages = (200 + page_size - 1) / page_size;
      RandomSequence random(seed + static_cast<uint64_t>(page_size), RandomStream::test);
      std::vector<int32_t> table;
      for (int64_t i = 0; i < 2 * pages; ++i) {
        table.push_back(static_cast<int32_t>(i));
      }
      for (size_t i = table.size(); i-- > 1;) {
        std::swap(table[i], table[random.below(static_cast<uint32_t>(i + 1))]);
      }
      const Tensor q = std::move(Tensor(DType::bf16, {2, 4, queries, 64}).random(seed + 1));
      const Tensor k =
          std::move(Tensor(DType::bf16, {2 * pages, 2, page_size, 64}).random(seed + 2));
      const Tensor v =
          std::move(Tensor(DType::bf16, {2 * pages, 2, page_size, 64}).random(seed + 3));
      const Tensor pages_of = Tensor::index({2, pages}, table);
      const Tensor used = Tensor::index({2}, {173, 200});
      AttentionOptions options;
      options.visibility.right = 0;
      options.sequences = {
          .used_key = used, .page_table = pages_of, .max_key = 200, .page_size = page_size};
      Tensor exact(DType::f64, {2, 4, queries, 64});
      Tensor loops(DType::bf16, {2, 4, queries, 64});
      Tensor ours(DType::bf16, {2, 4, queries, 64});
      attention_test::forward({.out = exact}, {q, k, v},
                              with_backend(options, AttentionBackend::reference));
      attention_test::RoundedLoops().forward({.out = loops}, {q, k, v}, options);
      for (const AttentionBackend backend :
           {AttentionBackend::automatic, AttentionBackend::portable}) {
        SCOPED_TRACE(std::to_string(page_size) + " keys a page, " + std::to_string(queries) +
                     " queries, " + std::string(attention_backend_name(backend)));
        DeviceExecutor().forward({.out = ours}, {q, k, v}, with_backend(options, backend));
        EXPECT_LE(distance(ours, exact), 2 * distance(loops, exact) + 1e-5);
      }
    }
  }
}

// A captured forward and backward pass, replayed on other inputs, gives the bits of direct calls.
TEST(AttentionGpuGraph, ReplaysGiveTheBitsOfCalls) {
  FLASHLOOM_NEEDS_GPU();
  for (const AttentionBackend backend : {AttentionBackend::automatic, AttentionBackend::portable}) {
    SCOPED_TRACE(attention_backend_name(backend));
    constexpr int64_t kElements = 2 * 4 * 200 * 64;
    std::vector<void*> memory;
    const auto tensor = [&](DType dtype, std::initializer_list<int64_t> shape) {
      TensorView view(static_cast<void*>(nullptr), dtype, shape, {Device::Kind::cuda, 0});
      cuda::check(cudaMalloc(&view.data, static_cast<size_t>(view.bytes())), "cudaMalloc");
      memory.push_back(view.data);
      return view;
    };
    TensorView views[9];
    for (TensorView& view : views) {
      view = tensor(DType::bf16, {2, 4, 200, 64});
    }
    const auto& [q, k, v, dout, out, dq, dk, dv, spare] = views;
    const TensorView lse = tensor(DType::f32, {2, 4, 200});
    AttentionOptions options;
    options.visibility.right = 0;
    options.execution.backend = backend;
    const AttentionInputs inputs = {q, k, v};
    const AttentionOutputs outputs = {.out = out, .lse = lse};
    const AttentionSaved saved = {.out = out, .lse = lse, .dout = dout};
    const AttentionGradients gradients = {.dq = dq, .dk = dk, .dv = dv};
    const int64_t bytes =
        std::max(attention_forward_workspace_bytes(outputs, inputs, options),
                 attention_backward_workspace_bytes(gradients, inputs, saved, options));
    const TensorView workspace = tensor(DType::u8, {bytes + 1});
    const std::span<std::byte> span = {static_cast<std::byte*>(workspace.data),
                                       static_cast<size_t>(bytes)};
    cudaStream_t stream = nullptr;
    cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    const auto call = [&] {
      attention_forward(outputs, inputs, span, options, {stream});
      attention_backward(gradients, inputs, saved, span, options, {stream});
    };
    const auto draw = [&](uint64_t seed) {
      for (const TensorView* view : {&q, &k, &v, &dout}) {
        const Tensor host = std::move(Tensor(DType::bf16, {kElements}).random(++seed));
        cuda::check(cudaMemcpy(view->data, host.view().data, kElements * 2, cudaMemcpyHostToDevice),
                    "cudaMemcpy");
      }
      for (const TensorView* view : {&out, &dq, &dk, &dv}) {
        cuda::check(cudaMemset(view->data, 0xff, kElements * 2), "cudaMemset");
      }
      // The default stream's copies and fills may outlast their calls, and `stream` does not wait
      // for them: one was seen to fill `out` behind the kernel that wrote it.
      cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    };
    const auto results = [&] {
      cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
      std::vector<std::vector<std::byte>> all;
      for (const TensorView* view : {&out, &dq, &dk, &dv}) {
        all.emplace_back(kElements * 2);
        cuda::check(
            cudaMemcpy(all.back().data(), view->data, kElements * 2, cudaMemcpyDeviceToHost),
            "cudaMemcpy");
      }
      return all;
    };
    const uint64_t seed = fresh_seed();
    draw(seed);
    call();  // the first call may load modules, which a capture must not
    const auto first = results();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    call();
    cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
    cuda::check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    for (int round = 0; round < 3; ++round) {
      draw(seed + 10 * static_cast<uint64_t>(round));
      cuda::check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
      const auto replayed = results();
      draw(seed + 10 * static_cast<uint64_t>(round));
      call();
      EXPECT_TRUE(replayed == results()) << "round " << round;
      EXPECT_EQ(round == 0, replayed == first);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    for (void* pointer : memory) {
      cudaFree(pointer);
    }
  }
}

TEST(AttentionGpuDeterminism, RepeatedBackwardsGiveTheSameBits) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  for (const AttentionBackend backend : {AttentionBackend::automatic, AttentionBackend::portable}) {
    for (const int64_t dim : {64, 128}) {
      SCOPED_TRACE(std::string(attention_backend_name(backend)) + ", " + std::to_string(dim));
      Case call = {.batch = 2,
                   .heads = 8,
                   .key_heads = 2,
                   .queries = 500,
                   .keys = 500,
                   .dim = dim,
                   .value_dim = dim,
                   .dtype = DType::bf16,
                   .seed = seed,
                   .sums = true};
      call.options.visibility.right = 0;
      call.options.execution.deterministic = true;
      const auto run = [&] {
        return call.run(backend, true, DeviceExecutor(), DType::bf16, DType::bf16);
      };
      const Results first = run();
      for (int i = 0; i < 4; ++i) {
        const Results again = run();
        ASSERT_TRUE(again.out.same_bits(first.out)) << i;
        ASSERT_TRUE(again.dq.same_bits(first.dq)) << i;
        ASSERT_TRUE(again.dk.same_bits(first.dk)) << i;
        ASSERT_TRUE(again.dv.same_bits(first.dv)) << i;
      }
    }
  }
}

TEST(AttentionGpuMerge, PartsOnTheDeviceEqualTheReference) {
  FLASHLOOM_NEEDS_GPU();
  const uint64_t seed = fresh_seed();
  for (const bool with_sinks : {false, true}) {
    Tensor parts = std::move(Tensor(DType::f32, {5, 2, 3, 37, 50}).random(seed));
    Tensor part_lse = std::move(Tensor(DType::f32, {5, 2, 3, 37}).random(seed + 1, 3));
    const Tensor sinks = std::move(Tensor(DType::f32, {3}).random(seed + 2));
    // A part without a key holds anything; a row without a part is empty.
    for (int64_t p = 0; p < 5; ++p) {
      part_lse.set(p * 2 * 3 * 37 + 4, -std::numeric_limits<double>::infinity());
      part_lse.set(p * 2 * 3 * 37 + 5 + p, -std::numeric_limits<double>::infinity());
      for (int64_t e = 0; e < 50; ++e) {
        parts.set((p * 2 * 3 * 37 + 4) * 50 + e, std::numeric_limits<double>::quiet_NaN());
        parts.set((p * 2 * 3 * 37 + 5 + p) * 50 + e, std::numeric_limits<double>::quiet_NaN());
      }
    }
    Tensor exact(DType::f64, {2, 3, 37, 50});
    Tensor exact_lse(DType::f64, {2, 3, 37});
    const Tensor out(DType::f32, {2, 3, 37, 50});
    const Tensor lse(DType::f32, {2, 3, 37});
    const ConstTensorView given = with_sinks ? ConstTensorView(sinks) : ConstTensorView{};
    attention_merge(exact, exact_lse, parts, part_lse, given);
    attention_test::DeviceArena arena(Layout::contiguous);
    TensorView out_view = out;
    TensorView lse_view = lse;
    ConstTensorView parts_view = parts;
    ConstTensorView part_lse_view = part_lse;
    ConstTensorView sinks_view = given;
    arena.place(out_view, true);
    arena.place(lse_view, true);
    arena.place(parts_view, false);
    arena.place(part_lse_view, false);
    arena.place(sinks_view, false);
    arena.upload();
    attention_merge(out_view, lse_view, parts_view, part_lse_view, sinks_view);
    arena.download();
    EXPECT_LE(distance(out, exact), 2e-6);
    EXPECT_LE(distance(lse, exact_lse), 2e-6);
  }
}

// Bad index data on the device sets the status word, touches nothing outside the call's tensors
// (DeviceExecutor looks), and attention_check() says so.
TEST(AttentionGpuStatus, BadIndexDataSetsTheWord) {
  FLASHLOOM_NEEDS_GPU();
  const auto status_of = [](AttentionOptions options, int64_t pages) {
    const Tensor q = std::move(Tensor(DType::bf16, {2, 4, 70, 64}).random(1));
    const Tensor k = std::move(pages > 0 ? Tensor(DType::bf16, {pages, 2, 16, 64}).random(2)
                                         : Tensor(DType::bf16, {2, 2, 80, 64}).random(2));
    const Tensor out(DType::bf16, {2, 4, 70, 64});
    const Tensor status = Tensor::index({1}, {0});
    options.execution.status = status;
    options.execution.backend = AttentionBackend::portable;
    DeviceExecutor().forward({.out = out}, {q, k, k}, options);
    return *status.view().as<int32_t>();
  };
  AttentionOptions options;
  EXPECT_EQ(status_of(options, 0), 0);
  const Tensor used = Tensor::index({2}, {70, 3});
  const Tensor too_many = Tensor::index({2}, {70, 81});
  options.sequences.used_key = used;
  EXPECT_EQ(status_of(options, 0), 0);
  options.sequences.used_key = too_many;
  EXPECT_NE(status_of(options, 0), 0);
  options = {};
  const Tensor pages = Tensor::index({2, 5}, {0, 1, 2, 3, 4, 9, 8, 7, 6, 5});
  const Tensor bad_pages = Tensor::index({2, 5}, {0, 1, 2, 3, 4, 9, 8, -7, 600000, 5});
  options.sequences = {.page_table = pages, .max_key = 80, .page_size = 16};
  EXPECT_EQ(status_of(options, 10), 0);
  options.sequences.page_table = bad_pages;
  EXPECT_NE(status_of(options, 10), 0);
  options = {};
  const Tensor row_offsets = Tensor::index({1, 1, 6}, {0, 1, 2, 3, 4, 5});
  const Tensor columns = Tensor::index({1, 1, 5}, {0, 1, 2, 3, 4});
  const Tensor bad_columns = Tensor::index({1, 1, 5}, {0, 1, -2000000, 3, 4000000});
  options.blocks = {
      .block_rows = 16, .block_keys = 16, .row_offsets = row_offsets, .columns = columns};
  EXPECT_EQ(status_of(options, 0), 0);
  options.blocks.columns = bad_columns;
  EXPECT_NE(status_of(options, 0), 0);

  int32_t* word = nullptr;
  cuda::check(cudaMalloc(&word, 4), "cudaMalloc");
  cuda::check(cudaMemset(word, 0, 4), "cudaMemset");
  options.execution.status =
      TensorView(static_cast<void*>(word), DType::i32, {1}, {Device::Kind::cuda, 0});
  EXPECT_NO_THROW(attention_check(options));
  cuda::check(cudaMemset(word, 1, 4), "cudaMemset");
  EXPECT_THROW(attention_check(options), InvalidArgument);
  cudaFree(word);
}

}  // namespace
}  // namespace flashloom
