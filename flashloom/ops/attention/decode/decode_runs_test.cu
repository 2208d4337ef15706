#include "flashloom/ops/attention/decode/decode_test_fixture.cuh"

// Decoding on a GPU, run after run: graphs, the same bits, streams, bad data, dispatch.

namespace flashloom {
namespace {

using decode_test::AttentionDecodeGpu;
using decode_test::DecodeCall;
using decode_test::DecodeCase;
using decode_test::DeviceMemory;
using decode_test::DeviceTensor;
using decode_test::Tensor;

TEST_F(AttentionDecodeGpu, GraphsReplayWithOtherLengths) {
  for (const auto& [queries, splits] : {std::pair<int64_t, int>{1, 0}, {8, 0}, {16, 0}, {8, 6}}) {
    DecodeCase description = {.batch = 3,
                              .queries = queries,
                              .keys = 2000,
                              .page_size = 64,
                              .used_key = {2000, 2000, 2000}};
    description.options.execution.splits = splits;
    DecodeCall call(description);
    DeviceMemory workspace(
        attention_forward_workspace_bytes(call.outputs(), call.inputs(), call.options()));
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cuda::check(cudaStreamCreate(&stream), "cudaStreamCreate");
    cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    attention_forward(call.outputs(), call.inputs(), workspace.span(), call.options(), {stream});
    cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
    cuda::check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    workspace.poison();
    const std::vector<int32_t> lengths[] = {
        {2000, 2000, 2000}, {1, 2000, 999}, {0, 64, 65}, {1500, 0, 1501}};
    for (uint64_t round = 0; round < 12; ++round) {
      SCOPED_TRACE(round);
      call.redraw(50 + round, lengths[round % 4]);
      call.device_out->poison();
      call.device_lse->poison();
      cuda::check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
      call.fetch();
      call.expect_law();
      const Bits replayed = bits(call);
      call.run();
      EXPECT_TRUE(replayed == bits(call)) << "a replay gave other bits than a call";
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(AttentionDecodeGpu, ManyRunsGiveTheSameBits) {
  for (const int64_t dim : {128, 256}) {
    for (const int64_t queries : {2, 16}) {
      for (const bool ragged : {true, false}) {  // a line of tiles; parts
        DecodeCase description = {.batch = 5, .queries = queries, .keys = 3000, .dim = dim};
        if (ragged) {
          description.used_key = {3000, 17, 1234, 0, 2999};
        }
        DecodeCall call(description);
        call.run();
        const Bits first = bits(call);
        for (int round = 0; round < 30; ++round) {
          call.run();
          ASSERT_TRUE(first == bits(call))
              << dim << ", " << queries << " queries, " << ragged << ", run " << round;
        }
      }
    }
  }
}

// 160 blocks, two a unit: at 256 columns a multiprocessor has room for one, so that they cannot
// wait for each other.
TEST_F(AttentionDecodeGpu, MoreBlocksThanRunAtOnce) {
  for (const int64_t dim : {128, 256}) {
    for (const int64_t queries : {1, 16}) {
      SCOPED_TRACE(std::to_string(dim) + " " + std::to_string(queries));
      check({.batch = 10,
             .heads = 16,
             .key_heads = 8,
             .queries = queries,
             .keys = 700,
             .dim = dim,
             .sinks = true});
    }
  }
}

// Blocks of a unit wait for each other: two launches must not keep each other from starting.
TEST_F(AttentionDecodeGpu, TwoStreamsAtOnce) {
  DecodeCall few({.batch = 1, .keys = 9000}, 7);
  DecodeCall many({.batch = 1, .heads = 32, .key_heads = 8, .queries = 16, .keys = 3000}, 8);
  DecodeCall* calls[] = {&few, &many};
  Bits expected[2];
  std::unique_ptr<DeviceMemory> workspaces[2];
  cudaStream_t streams[2];
  for (int i = 0; i < 2; ++i) {
    calls[i]->run();
    calls[i]->expect_law();
    expected[i] = bits(*calls[i]);
    calls[i]->device_out->poison();
    workspaces[i] = std::make_unique<DeviceMemory>(attention_forward_workspace_bytes(
        calls[i]->outputs(), calls[i]->inputs(), calls[i]->options()));
    cuda::check(cudaStreamCreate(&streams[i]), "cudaStreamCreate");
  }
  cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  for (int round = 0; round < 200; ++round) {
    for (int i = 0; i < 2; ++i) {
      attention_forward(calls[i]->outputs(), calls[i]->inputs(), workspaces[i]->span(),
                        calls[i]->options(), {streams[i]});
    }
  }
  for (int i = 0; i < 2; ++i) {
    calls[i]->fetch();
    EXPECT_TRUE(expected[i] == bits(*calls[i])) << i;
    cudaStreamDestroy(streams[i]);
  }
}

TEST_F(AttentionDecodeGpu, BadIndexDataSetsTheStatus) {
  const Tensor zero = Tensor::index({1}, {0});
  DeviceTensor status(zero.view());
  const auto status_of = [&](DecodeCall& call) {
    status.upload(zero.view());
    call.options().execution.status = status.view();
    call.run();
    Tensor value = Tensor::index({1}, {0});
    status.download(value.view());
    return value.view().as<int32_t>()[0];
  };
  DecodeCall good({.page_size = 16, .used_key = {300, 100}});
  EXPECT_EQ(status_of(good), 0);
  DecodeCall page({.page_size = 16, .used_key = {300, 100}});
  page.page_table.view().as<int32_t>()[3] = 1 << 20;
  page.device_pages->upload(page.page_table.view());
  EXPECT_NE(status_of(page), 0);
  DecodeCall longer({.page_size = 16, .used_key = {300, 100}});
  longer.used_key.view().as<int32_t>()[1] = 301;
  longer.device_used_key->upload(longer.used_key.view());
  EXPECT_NE(status_of(longer), 0);
}

TEST_F(AttentionDecodeGpu, IsTheChoiceForFewQueries) {
  const DecodeCall call({.queries = 16, .page_size = 16});
  AttentionOptions options = DecodeCall({.queries = 16, .page_size = 16}).options();
  const AttentionChoice choice = attention_forward_backend(call.outputs(), call.inputs(), options);
  EXPECT_EQ(choice.backend, AttentionBackend::sm90);
  EXPECT_EQ(choice.reason, "");
}

}  // namespace
}  // namespace flashloom
