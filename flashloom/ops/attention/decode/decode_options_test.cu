#include "flashloom/ops/attention/decode/decode_test_fixture.cuh"

// Decoding on a GPU against the float64 reference: splits, windows, scores, packed rows, layouts.

namespace flashloom {
namespace {

using decode_test::AttentionDecodeGpu;
using decode_test::DecodeCall;
using decode_test::DecodeCase;
using decode_test::DeviceMemory;
using decode_test::DeviceTensor;
using decode_test::Tensor;

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

// Warpgroups' threads copy 16 bytes of a query at once, or load four bytes each.
TEST_F(AttentionDecodeGpu, QueriesAtMultiplesOfFourBytes) {
  for (const int64_t dim : {72, 128, 192, 256}) {
    for (const bool ragged : {false, true}) {
      SCOPED_TRACE(std::to_string(dim) + (ragged ? " ragged" : ""));
      DecodeCase description = {.queries = 9, .dim = dim};
      if (ragged) {
        description.used_key = {300, 20};
      }
      DecodeCall call(description);
      call.run();
      const Tensor expected = call.out.as(DType::bf16);
      AttentionInputs inputs = call.inputs();
      const int64_t rows = call.q.view().size() / dim;
      const auto row_bytes = static_cast<size_t>(dim) * 2;
      DeviceMemory moved(rows * (dim + 2) * 2 + 4);
      char* data = static_cast<char*>(moved.data()) + 4;
      cuda::check(cudaMemcpy2D(data, row_bytes + 4, inputs.q.data, row_bytes, row_bytes,
                               static_cast<size_t>(rows), cudaMemcpyDefault),
                  "cudaMemcpy2D");
      inputs.q.data = data;
      inputs.q.strides[2] = dim + 2;
      inputs.q.strides[1] = 9 * inputs.q.strides[2];
      inputs.q.strides[0] = 8 * inputs.q.strides[1];
      DeviceMemory workspace(
          attention_forward_workspace_bytes(call.outputs(), inputs, call.options()));
      call.device_out->poison();
      attention_forward(call.outputs(), inputs, workspace.span(), call.options());
      call.fetch();
      for (int64_t i = 0; i < expected.size(); ++i) {
        ASSERT_EQ(expected.get(i), call.out.get(i)) << i;
      }
    }
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

}  // namespace
}  // namespace flashloom
