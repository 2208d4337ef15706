#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/attention_test_run.cuh"
#include "flashloom/ops/attention/flashloom_attention.h"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// The C interface on a GPU, for calls of every family of kernels: what a framework relies on that
// asks for the workspace before it has memory, captures calls in graphs, and was built with an
// older or a newer header.

namespace flashloom {
namespace {

using attention_test::fresh_seed;
using attention_test::RandomBlocks;
using attention_test::Tensor;

/// One call, its tensors in device memory.
class GpuCall {
 public:
  GpuCall() {
    call.size = sizeof(call);
    call.device_kind = 1;
    call.left = call.right = -1;
    call.deterministic = 1;
    cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    call.stream = stream_;
  }

  GpuCall(const GpuCall&) = delete;

  ~GpuCall() {
    cudaStreamSynchronize(stream_);
    for (void* memory : memory_) {
      cudaFree(memory);
    }
    cudaStreamDestroy(stream_);
  }

  /// Describes a tensor without memory yet: the size of a workspace follows from shapes alone.
  void tensor(FlashloomTensor& to, DType dtype, std::initializer_list<int64_t> shape) {
    to = {};
    to.dtype = static_cast<int32_t>(dtype);
    to.rank = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), to.shape);
    int64_t stride = 1;
    for (int i = to.rank; i-- > 0; stride *= to.shape[i]) {
      to.strides[i] = stride;
    }
  }

  void input(FlashloomTensor& to, DType dtype, std::initializer_list<int64_t> shape) {
    tensor(to, dtype, shape);
    inputs_.push_back(&to);
  }

  void output(FlashloomTensor& to, DType dtype, std::initializer_list<int64_t> shape) {
    tensor(to, dtype, shape);
    outputs_.push_back(&to);
  }

  /// Index data of the host.
  void index(FlashloomTensor& to, const ConstTensorView& host) {
    to = {};
    to.dtype = static_cast<int32_t>(host.dtype);
    to.rank = host.rank;
    std::copy_n(host.shape.begin(), host.rank, to.shape);
    std::copy_n(host.strides.begin(), host.rank, to.strides);
    to.data = allocate(static_cast<size_t>(host.bytes()));
    cuda::check(cudaMemcpyAsync(to.data, host.data, static_cast<size_t>(host.bytes()),
                                cudaMemcpyHostToDevice, stream_),
                "cudaMemcpyAsync");
    cuda::check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  void allocate_tensors() {
    for (const auto* list : {&inputs_, &outputs_}) {
      for (FlashloomTensor* to : *list) {
        to->data = allocate(bytes(*to));
      }
    }
  }

  void allocate_workspace(size_t size) {
    call.workspace = allocate(size + 1);
    call.workspace_bytes = size;
  }

  /// New inputs; outputs and the workspace hold NaN.
  void draw(uint64_t seed) {
    for (const FlashloomTensor* to : inputs_) {
      const Tensor host =
          std::move(Tensor(static_cast<DType>(to->dtype), {elements(*to)}).random(++seed));
      cuda::check(
          cudaMemcpyAsync(to->data, host.view().data, bytes(*to), cudaMemcpyHostToDevice, stream_),
          "cudaMemcpyAsync");
      cuda::check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    }
    for (const FlashloomTensor* to : outputs_) {
      cuda::check(cudaMemsetAsync(to->data, 0xff, bytes(*to), stream_), "cudaMemsetAsync");
    }
    cuda::check(cudaMemsetAsync(call.workspace, 0xff, call.workspace_bytes, stream_),
                "cudaMemsetAsync");
  }

  std::vector<std::vector<std::byte>> results() const {
    cuda::check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    std::vector<std::vector<std::byte>> all;
    for (const FlashloomTensor* to : outputs_) {
      all.emplace_back(bytes(*to));
      cuda::check(cudaMemcpy(all.back().data(), to->data, bytes(*to), cudaMemcpyDeviceToHost),
                  "cudaMemcpy");
    }
    return all;
  }

  cudaStream_t stream() const { return stream_; }

  bool backward() const { return call.dq.rank != 0; }

  FlashloomAttention call = {};

 private:
  static int64_t elements(const FlashloomTensor& tensor) {
    int64_t count = 1;
    for (int i = 0; i < tensor.rank; ++i) {
      count *= tensor.shape[i];
    }
    return count;
  }

  static size_t bytes(const FlashloomTensor& tensor) {
    return static_cast<size_t>(elements(tensor)) * dtype_bytes(static_cast<DType>(tensor.dtype));
  }

  void* allocate(size_t size) {
    void* memory = nullptr;
    cuda::check(cudaMalloc(&memory, size), "cudaMalloc");
    memory_.push_back(memory);
    return memory;
  }

  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_;
  std::vector<FlashloomTensor*> inputs_, outputs_;
};

void add_tensors(GpuCall& c, DType dtype, int64_t queries, int64_t keys, int64_t dim,
                 bool backward) {
  FlashloomAttention& call = c.call;
  c.input(call.q, dtype, {2, 4, queries, dim});
  c.input(call.k, dtype, {2, 2, keys, dim});
  c.input(call.v, dtype, {2, 2, keys, dim});
  c.output(call.out, dtype, {2, 4, queries, dim});
  c.output(call.lse, DType::f32, {2, 4, queries});
  if (backward) {
    c.input(call.dout, dtype, {2, 4, queries, dim});
    c.output(call.dq, dtype, {2, 4, queries, dim});
    c.output(call.dk, dtype, {2, 2, keys, dim});
    c.output(call.dv, dtype, {2, 2, keys, dim});
  }
}

struct Kind {
  const char* name;
  AttentionBackend backend;  // that it takes
  std::function<void(GpuCall&)> describe;
  bool first_fields;  // it uses no field that the first header lacked
};

const std::vector<Kind>& kinds() {
  static const RandomBlocks kBlocks(300, 400, 128, 128, 1, 5);
  static const Tensor kPages = Tensor::index({2, 5}, {7, 2, 9, 4, 1, 0, 3, 8, 6, 5});
  static const std::vector<Kind> kKinds = {
      {"dense", AttentionBackend::sm90,
       [](GpuCall& c) {
         add_tensors(c, DType::bf16, 300, 700, 128, true);
         c.call.right = 0;
       },
       true},
      {"wide heads, few keys", AttentionBackend::sm90,
       [](GpuCall& c) { add_tensors(c, DType::f16, 130, 150, 256, true); }, true},
      {"block-sparse", AttentionBackend::sm90,
       [](GpuCall& c) {
         add_tensors(c, DType::bf16, 300, 400, 64, true);
         const AttentionBlocks& blocks = kBlocks.blocks;
         c.call.block_rows = blocks.block_rows;
         c.call.block_keys = blocks.block_keys;
         c.index(c.call.block_row_offsets, blocks.row_offsets);
         c.index(c.call.block_columns, blocks.columns);
         c.index(c.call.block_partial, blocks.partial);
         c.index(c.call.block_bits, blocks.bits);
         c.index(c.call.block_column_offsets, blocks.column_offsets);
         c.index(c.call.block_transposed_rows, blocks.rows);
         c.index(c.call.block_transposed_partial, blocks.transposed_partial);
       },
       false},
      {"decode", AttentionBackend::sm90,
       [](GpuCall& c) {
         add_tensors(c, DType::bf16, 1, 3000, 128, false);
         c.call.right = 0;
       },
       true},
      {"decode over pages", AttentionBackend::sm90,
       [](GpuCall& c) {
         c.input(c.call.q, DType::bf16, {2, 4, 2, 128});
         c.input(c.call.k, DType::bf16, {10, 2, 16, 128});
         c.input(c.call.v, DType::bf16, {10, 2, 16, 128});
         c.output(c.call.out, DType::bf16, {2, 4, 2, 128});
         c.index(c.call.page_table, kPages);
         c.call.page_size = 16;
         c.call.max_key = 80;
       },
       false},
      {"portable", AttentionBackend::portable,
       [](GpuCall& c) {
         add_tensors(c, DType::f32, 130, 150, 64, true);
         c.call.right = 0;
       },
       true},
      {"portable, softcap and positions", AttentionBackend::portable,
       [](GpuCall& c) {
         add_tensors(c, DType::bf16, 70, 80, 128, true);
         static const Tensor kRows =
             Tensor::index({2, 4, 70}, std::vector<int32_t>(size_t{2} * 4 * 70, 9));
         c.index(c.call.query_positions, kRows);
         c.call.softcap = 3;
       },
       false},
      {"rows of 300: the float64 reference", AttentionBackend::reference,
       [](GpuCall& c) { add_tensors(c, DType::f32, 20, 30, 300, true); }, true}};
  return kKinds;
}

class FlashloomAttentionGpu : public testing::TestWithParam<size_t> {
 protected:
  const Kind& kind() const { return kinds()[GetParam()]; }

  // The workspace of both directions, asked for.
  static size_t workspace(const FlashloomAttention& call) {
    char message[256] = "";
    size_t forward = 0;
    size_t backward = 0;
    EXPECT_EQ(flashloom_attention_forward_workspace(&call, &forward, message, sizeof(message)), 0)
        << message;
    if (call.dq.rank != 0) {
      EXPECT_EQ(flashloom_attention_backward_workspace(&call, &backward, message, sizeof(message)),
                0)
          << message;
    }
    return std::max(forward, backward);
  }

  // "" or the message of the first call that failed.
  static std::string run(const FlashloomAttention* call, bool backward) {
    char message[256] = "";
    if (flashloom_attention_forward(call, message, sizeof(message)) != 0 ||
        (backward && flashloom_attention_backward(call, message, sizeof(message)) != 0)) {
      return message[0] == '\0' ? "failed without a message" : message;
    }
    return "";
  }

  void prepare(GpuCall& c) const {
    kind().describe(c);
    const size_t bytes = workspace(c.call);
    c.allocate_tensors();
    // Asked again with addresses, it may not be more.
    EXPECT_LE(workspace(c.call), bytes);
    c.allocate_workspace(bytes);
  }
};

TEST_P(FlashloomAttentionGpu, TakesItsBackendAndTheWorkspaceThatItAsksFor) {
  FLASHLOOM_NEEDS_GPU();
  GpuCall c;
  prepare(c);
  char message[256] = "";
  int32_t backend = 0;
  ASSERT_EQ(flashloom_attention_forward_backend(&c.call, &backend, message, sizeof(message)), 0);
  EXPECT_EQ(static_cast<AttentionBackend>(backend), kind().backend) << message;
  if (c.backward()) {
    ASSERT_EQ(flashloom_attention_backward_backend(&c.call, &backend, message, sizeof(message)), 0);
    EXPECT_EQ(static_cast<AttentionBackend>(backend), kind().backend) << message;
  }
  c.draw(fresh_seed());
  EXPECT_EQ(run(&c.call, c.backward()), "");
  for (const auto& result : c.results()) {
    EXPECT_NE(result, std::vector<std::byte>(result.size(), std::byte{0xff})) << "not written";
  }
  // One byte less is refused by name before anything runs.
  const auto refused = [&](auto ask, auto call) {
    size_t bytes = 0;
    ASSERT_EQ(ask(&c.call, &bytes, message, sizeof(message)), 0) << message;
    if (bytes > 0) {
      c.call.workspace_bytes = bytes - 1;
      EXPECT_EQ(call(&c.call, message, sizeof(message)), 1) << message;
      EXPECT_NE(std::string(message).find("workspace"), std::string::npos) << message;
    }
  };
  refused(flashloom_attention_forward_workspace, flashloom_attention_forward);
  if (c.backward()) {
    refused(flashloom_attention_backward_workspace, flashloom_attention_backward);
  }
}

TEST_P(FlashloomAttentionGpu, ReplaysOfAGraphGiveTheBitsOfCalls) {
  FLASHLOOM_NEEDS_GPU();
  GpuCall c;
  prepare(c);
  const uint64_t seed = fresh_seed();
  c.draw(seed);
  ASSERT_EQ(run(&c.call, c.backward()), "");  // the first call may load modules
  const auto first = c.results();
  // In this mode whatever synchronises or allocates ends the capture with an error.
  cudaGraph_t graph = nullptr;
  cuda::check(cudaStreamBeginCapture(c.stream(), cudaStreamCaptureModeGlobal), "capture");
  const std::string failure = run(&c.call, c.backward());
  cuda::check(cudaStreamEndCapture(c.stream(), &graph), "capture");
  ASSERT_EQ(failure, "");
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  for (uint64_t round = 0; round < 3; ++round) {
    c.draw(seed + 100 * round);
    cuda::check(cudaGraphLaunch(executable, c.stream()), "cudaGraphLaunch");
    const auto replayed = c.results();
    c.draw(seed + 100 * round);
    ASSERT_EQ(run(&c.call, c.backward()), "");
    EXPECT_EQ(replayed, c.results()) << "round " << round;
    EXPECT_EQ(round == 0, replayed == first);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_P(FlashloomAttentionGpu, TakesStructsOfOtherHeaders) {
  FLASHLOOM_NEEDS_GPU();
  GpuCall c;
  prepare(c);
  const uint64_t seed = fresh_seed();
  c.draw(seed);
  ASSERT_EQ(run(&c.call, c.backward()), "");
  const auto expected = c.results();

  std::vector<std::byte> newer(sizeof(c.call) + 64);
  std::memcpy(newer.data(), &c.call, sizeof(c.call));
  auto* call = reinterpret_cast<FlashloomAttention*>(newer.data());
  call->size = newer.size();
  c.draw(seed);
  ASSERT_EQ(run(call, c.backward()), "");
  EXPECT_EQ(c.results(), expected) << "a newer header";
  newer.back() = std::byte{1};
  EXPECT_NE(run(call, c.backward()).find("size"), std::string::npos);

  if (kind().first_fields) {
    c.call.size = offsetof(FlashloomAttention, entropy);
    c.call.softcap = 0.01F;  // behind the end of the old struct: never read
    c.draw(seed);
    ASSERT_EQ(run(&c.call, c.backward()), "");
    EXPECT_EQ(c.results(), expected) << "the first header";
  }
  c.call.size = sizeof(size_t);
  EXPECT_NE(run(&c.call, c.backward()).find("size"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Kinds, FlashloomAttentionGpu, testing::Range(size_t{0}, kinds().size()),
                         [](const testing::TestParamInfo<size_t>& info) {
                           std::string name = kinds()[info.param].name;
                           std::erase_if(name, [](char x) { return std::isalnum(x) == 0; });
                           return name;
                         });

}  // namespace
}  // namespace flashloom
