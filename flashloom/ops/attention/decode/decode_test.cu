#include "flashloom/ops/attention/decode/decode_params.cuh"
#include "flashloom/ops/attention/decode/decode_test_case.cuh"

// Decoding on a GPU against the float64 reference: shapes, lengths, pages, splits, scores, graphs.

namespace flashloom {
namespace {

using decode_test::DecodeCall;
using decode_test::DecodeCase;
using decode_test::DeviceMemory;
using decode_test::DeviceTensor;
using decode_test::Tensor;

class AttentionDecodeGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!decode_test::has_gpu()) {
      GTEST_SKIP() << "no GPU";
    }
  }

  // Twice, over different old contents of the workspace: the law, and the same bits.
  static void check(const DecodeCase& description) {
    static uint64_t seed = 100;
    DecodeCall call(description, seed += 10);
    call.run();
    call.expect_law();
    const Bits first = bits(call);
    call.run();
    EXPECT_TRUE(first == bits(call)) << "a second run gave other bits";
  }

  using Bits = std::vector<std::byte>;

  static Bits bits(const DecodeCall& call) {
    Bits all;
    for (const Tensor* tensor : {&call.out, &call.lse}) {
      const auto* first = static_cast<const std::byte*>(tensor->view().data);
      all.insert(all.end(), first, first + tensor->view().bytes());
    }
    return all;
  }
};

TEST(AttentionDecodeDivisor, DividesExactly) {
  for (const int64_t divisor :
       {1, 2, 3, 5, 7, 8, 12, 71, 100, 127, 128, 129, 4096, 65537, (1 << 30) - 1, 1 << 30}) {
    const Divisor fast(divisor);
    for (const int64_t multiple : {0, 1, 2, 3, 1000, 12345, 1 << 20, 1 << 30}) {
      for (const int64_t rest : {-1, 0, 1}) {
        const int64_t n = std::clamp<int64_t>(multiple * divisor + rest, 0, 0x7fffffff);
        ASSERT_EQ(fast.quotient(static_cast<int32_t>(n)), n / divisor) << n << " / " << divisor;
      }
    }
    ASSERT_EQ(fast.quotient(0x7fffffff), 0x7fffffff / divisor) << divisor;
  }
}

TEST_F(AttentionDecodeGpu, EqualsTheReferenceAtEveryHeadDimension) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int64_t dim : {8, 40, 64, 72, 96, 128, 136, 192, 200, 256}) {
      for (const int64_t queries : {1, 3, 9}) {
        SCOPED_TRACE(std::string(dtype_name(dtype)) + " " + std::to_string(dim) + " " +
                     std::to_string(queries));
        check({.queries = queries, .keys = 777, .dim = dim, .dtype = dtype});
      }
    }
  }
}

TEST_F(AttentionDecodeGpu, EqualsTheReferenceForEveryGroup) {
  for (const auto& [heads, key_heads] :
       {std::pair<int64_t, int64_t>{1, 1}, {3, 3}, {6, 2}, {8, 1}, {32, 4}, {71, 1}}) {
    for (const int64_t queries : {1, 2, 5, 16}) {
      SCOPED_TRACE(std::to_string(heads) + " on " + std::to_string(key_heads) + ", " +
                   std::to_string(queries));
      check({.heads = heads, .key_heads = key_heads, .queries = queries, .keys = 403, .dim = 64});
    }
  }
}

TEST_F(AttentionDecodeGpu, EqualsTheReferenceAtEveryLength) {
  for (const int64_t keys : {0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000, 4099}) {
    for (const int64_t queries : {1, 4, 13}) {
      SCOPED_TRACE(std::to_string(keys) + " " + std::to_string(queries));
      check({.queries = queries, .keys = keys});
    }
  }
}

// Rows and keys around the borders of tiles of 64 rows and of 32 or 64 keys, whole and in parts.
TEST_F(AttentionDecodeGpu, TilesOfManyRowsAtEveryBorder) {
  const int64_t keys[] = {1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 193, 449};
  for (const int64_t dim : {64, 80, 128, 192, 256}) {
    size_t next = static_cast<size_t>(dim / 8);
    for (const int64_t rows : {17, 31, 32, 33, 48, 63, 64, 65, 128, 129}) {
      for (int i = 0; i < 3; ++i) {
        const int64_t length = keys[next++ % std::size(keys)];
        SCOPED_TRACE(std::to_string(dim) + ", " + std::to_string(rows) + " rows, " +
                     std::to_string(length) + " keys");
        DecodeCase description = {
            .heads = rows, .key_heads = 1, .keys = length, .dim = dim, .out_dtype = DType::f32};
        check(description);
        description.options.execution.splits = 3;
        description.used_key = {static_cast<int32_t>(length), static_cast<int32_t>(length / 2)};
        check(description);
      }
    }
  }
}

TEST_F(AttentionDecodeGpu, KeysBehindUsedLengthsAreInvisible) {
  const std::vector<int32_t> used = {0, 1, 15, 16, 17, 47, 48, 49, 127, 128, 129, 300};
  for (const int64_t page_size : {0, 1, 7, 16, 64}) {
    for (const int64_t queries : {1, 6}) {
      SCOPED_TRACE(std::to_string(page_size) + " " + std::to_string(queries));
      check({.batch = 12, .queries = queries, .page_size = page_size, .used_key = used});
    }
  }
}

TEST_F(AttentionDecodeGpu, ManySequencesOfAnyLength) {
  RandomSequence numbers(11, RandomStream::test);
  for (const int64_t batch : {33, 97}) {
    std::vector<int32_t> used(static_cast<size_t>(batch));
    for (int32_t& length : used) {
      length = std::min(500, static_cast<int32_t>(std::fabs(numbers.normal()) * 150));
    }
    check({.batch = batch, .heads = 4, .key_heads = 2, .keys = 500, .dim = 64, .used_key = used});
    check({.batch = batch,
           .heads = 24,
           .key_heads = 1,
           .keys = 500,
           .dim = 64,
           .page_size = 32,
           .used_key = used});
  }
}

// Key-value heads side by side on the line: all, some of them, or, of few tiles, none.
TEST_F(AttentionDecodeGpu, HeadsSideBySide) {
  for (const int64_t key_heads : {2, 3, 7, 12, 40, 131}) {
    for (const int64_t queries : {1, 9}) {
      for (const int32_t longest : {40, 900}) {
        SCOPED_TRACE(std::to_string(key_heads) + " heads, " + std::to_string(queries) + " queries");
        check({.batch = 5,
               .heads = 2 * key_heads,
               .key_heads = key_heads,
               .queries = queries,
               .keys = 900,
               .dim = key_heads > 12 ? 64 : 128,
               .used_key = {longest, 0, longest / 3, longest, 17}});
      }
    }
  }
}

// Blocks share units of 64 rows: each joins more items than it has threads.
TEST_F(AttentionDecodeGpu, StretchesOfManyRows) {
  for (const int64_t dim : {64, 72, 128, 192, 256}) {
    for (const int64_t page_size : {0, 24}) {
      SCOPED_TRACE(std::to_string(dim) + " " + std::to_string(page_size));
      check({.batch = 7,
             .heads = 4,
             .key_heads = 1,
             .queries = 16,
             .keys = 3000,
             .dim = dim,
             .page_size = page_size,
             .used_key = {3000, 1, 640, 2999, 0, 129, 1500}});
    }
  }
}

// A block's shared memory holds the lengths of 24,576 sequences at 128 columns.
TEST_F(AttentionDecodeGpu, MoreSequencesThanABlockKeeps) {
  for (const int64_t batch : {24'576, 24'577}) {
    std::vector<int32_t> used(static_cast<size_t>(batch));
    for (size_t i = 0; i < used.size(); ++i) {
      used[i] = static_cast<int32_t>(i * 7 % 4);
    }
    check({.batch = batch, .heads = 1, .key_heads = 1, .keys = 3, .used_key = used});
  }
}

TEST_F(AttentionDecodeGpu, PagesOfAnySize) {
  for (const int64_t page_size : {1, 2, 3, 8, 15, 16, 17, 24, 48, 64, 100, 128, 4096}) {
    for (const int64_t keys : {1, 130, 1025}) {
      SCOPED_TRACE(std::to_string(page_size) + " " + std::to_string(keys));
      check({.keys = keys, .page_size = page_size});
      check({.queries = 16, .keys = keys, .dim = 96, .page_size = page_size});
    }
  }
}

TEST_F(AttentionDecodeGpu, SplitsOfAnyNumber) {
  for (const int splits : {1, 2, 3, 7, 16, 100, 5000}) {
    for (const int64_t keys : {17, 1023, 1024, 1025}) {
      SCOPED_TRACE(std::to_string(splits) + " " + std::to_string(keys));
      DecodeCase description = {.keys = keys, .used_key = {static_cast<int32_t>(keys) - 16, 16}};
      description.options.execution.splits = splits;
      check(description);
      description.queries = 11;
      description.dim = 256;
      check(description);
    }
  }
  for (const float share : {0.01f, 0.3f}) {
    DecodeCase description = {.batch = 7, .keys = 2000};
    description.options.execution.multiprocessor_share = share;
    check(description);
  }
}

TEST_F(AttentionDecodeGpu, WindowsAndPositions) {
  for (const auto& [left, right] : {std::pair<int64_t, int64_t>{-1, -1},
                                    {0, 0},
                                    {3, 0},
                                    {100, 0},
                                    {64, 64},
                                    {-1, 5},
                                    {9, -1}}) {
    for (const int64_t offset : {-40, 0, 250, 400, 1000}) {
      SCOPED_TRACE(std::to_string(left) + ", " + std::to_string(right) + " at " +
                   std::to_string(offset));
      DecodeCase description = {.queries = 5, .keys = 310, .dim = 64};
      description.options.visibility = {left, right};
      check(description);
      description.options.positions.offset = offset;
      check(description);
    }
  }
  DecodeCase description = {.queries = 4};
  description.options.visibility = {200, 0};
  description.options.positions.query_start = int64_t{1} << 33;
  description.options.positions.key_start = (int64_t{1} << 33) - 250;
  check(description);
}

TEST_F(AttentionDecodeGpu, SinksSoftcapAlibiAndScale) {
  for (const int64_t queries : {1, 7}) {
    DecodeCase description = {.queries = queries, .keys = 700, .used_key = {700, 0}};
    description.sinks = true;
    check(description);
    description.alibi = true;
    check(description);
    description.options.score.softcap = 5;
    check(description);
    description.options.score.scale = 0.7f;
    check(description);
    description.options.score.scale = -0.1f;
    description.dtype = DType::f16;
    check(description);
  }
}

TEST_F(AttentionDecodeGpu, PeakedAndFlatRows) {
  for (const double deviation : {1e-3, 30.0, 1000.0}) {
    SCOPED_TRACE(deviation);
    check({.keys = 3000, .deviation = deviation});
    check({.queries = 8, .keys = 3000, .dim = 64, .deviation = deviation});
  }
}

TEST_F(AttentionDecodeGpu, PackedQueriesAndKeys) {
  DecodeCase description = {.batch = 4, .keys = 0};
  description.cu_query = {0, 1, 1, 9, 12};
  description.cu_key = {0, 130, 131, 400, 403};
  check(description);
  description.used_key = {100, 0, 269, 3};
  check(description);
  // Packed queries against pages.
  description = {.batch = 4, .keys = 300, .page_size = 16, .used_key = {300, 5, 0, 161}};
  description.cu_query = {0, 3, 4, 6, 6};
  check(description);
}

TEST_F(AttentionDecodeGpu, RowsBehindUsedQueriesArePadding) {
  check({.batch = 3, .queries = 12, .used_query = {0, 5, 12}});
  DecodeCase description = {
      .batch = 3, .queries = 12, .used_key = {40, 300, 7}, .used_query = {3, 0, 12}};
  description.sinks = true;
  check(description);
}

TEST_F(AttentionDecodeGpu, ValuesOfAnotherDimensionAndF32Out) {
  check({.dim = 192, .value_dim = 128});
  check({.queries = 6, .dim = 64, .value_dim = 96});
  check({.dim = 128, .out_dtype = DType::f32});
}

TEST_F(AttentionDecodeGpu, RowsOfHeadsSideBySide) {
  // Memory (B, S, H, D), as models hold it, for all tensors.
  DecodeCall call({.queries = 3});
  const auto turned = [](const Tensor& tensor, std::unique_ptr<DeviceTensor>& device) {
    const TensorView& from = tensor.view();
    Tensor other(from.dtype, {from.dim(0), from.dim(2), from.dim(1), from.dim(3)});
    for (int64_t b = 0; b < from.dim(0); ++b) {
      for (int64_t h = 0; h < from.dim(1); ++h) {
        for (int64_t i = 0; i < from.dim(2); ++i) {
          for (int64_t d = 0; d < from.dim(3); ++d) {
            other.set(((b * from.dim(2) + i) * from.dim(1) + h) * from.dim(3) + d,
                      tensor.get(((b * from.dim(1) + h) * from.dim(2) + i) * from.dim(3) + d));
          }
        }
      }
    }
    const TensorView view = other.view().transpose(1, 2);
    device = std::make_unique<DeviceTensor>(view);
    device->upload(view);
    return other;
  };
  call.run();
  const Tensor expected = call.out.as(DType::bf16);
  turned(call.q, call.device_q);
  turned(call.k, call.device_k);
  turned(call.v, call.device_v);
  Tensor fetched = turned(call.out, call.device_out);
  call.device_out->poison();
  DeviceMemory workspace(
      attention_forward_workspace_bytes(call.outputs(), call.inputs(), call.options()));
  attention_forward(call.outputs(), call.inputs(), workspace.span(), call.options());
  cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  call.device_out->download(fetched.view());
  for (int64_t i = 0; i < expected.size(); ++i) {
    const int64_t d = i % 128, row = i / 128 % 3, h = i / 384 % 8, b = i / 3072;
    ASSERT_EQ(expected.get(i), fetched.get(((b * 3 + row) * 8 + h) * 128 + d)) << i;
  }
}

// A stride of 0, which the copy engine's maps refuse.
TEST_F(AttentionDecodeGpu, OneHeadOfKeysForAll) {
  for (const int64_t queries : {1, 9}) {
    DecodeCall call({.queries = queries, .out_dtype = DType::f32});
    AttentionInputs inputs = call.inputs();
    inputs.k.strides[1] = inputs.v.strides[1] = 0;
    Tensor results[2];
    for (const bool exact : {false, true}) {
      AttentionOptions options = call.options();
      options.execution.backend = exact ? AttentionBackend::reference : AttentionBackend::automatic;
      DeviceMemory workspace(attention_forward_workspace_bytes(call.outputs(), inputs, options));
      call.device_out->poison();
      attention_forward(call.outputs(), inputs, workspace.span(), options);
      call.fetch();
      results[exact ? 1 : 0] = call.out.as(DType::f32);
    }
    // Results are about 0.1, of 300 values; weights are rounded at 2^-9. Another head's differ by
    // their size.
    EXPECT_LT(attention_test::distance(results[0], results[1]), 4e-3) << queries;
  }
}

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
