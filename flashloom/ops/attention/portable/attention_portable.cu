#include "flashloom/ops/attention/portable/attention_portable.h"
#include "flashloom/ops/attention/portable/backward_launch.cuh"
#include "flashloom/ops/attention/portable/backward_rows.cuh"
#include "flashloom/ops/attention/portable/forward_launch.cuh"

namespace flashloom::portable {
namespace {

constexpr int kClearWarps = 4;

struct ClearParams {
  RowsView out, lse, entropy;
  int64_t total = 0;  // rows of all heads
  int32_t heads = 0, rows = 0, width = 0;
};

// A warp a row: out 0, lse -inf, entropy 0.
__global__ void __launch_bounds__(32 * kClearWarps)
    attention_clear_kernel(const __grid_constant__ ClearParams params) {
  const int64_t at = int64_t{blockIdx.x} * kClearWarps + threadIdx.x / 32;
  if (at >= params.total) {
    return;
  }
  const auto of_head = static_cast<int32_t>(at / params.rows);
  const int64_t row = at - int64_t{of_head} * params.rows;
  const int32_t head = of_head % params.heads;
  const int32_t sequence = of_head / params.heads;
  const HeadRows out = head_rows(params.out, sequence, head, 0);
  char* to = const_cast<char*>(out.data) + row * out.row_bytes;
  for (auto e = static_cast<int32_t>(threadIdx.x % 32); e < params.width; e += 32) {
    store_float(to, params.out.dtype, e, 0);
  }
  if (threadIdx.x % 32 == 0 && params.lse.data != nullptr) {
    *scalar_at(params.lse, sequence, head, row) = -infinity();
  }
  if (threadIdx.x % 32 == 0 && params.entropy.data != nullptr) {
    *scalar_at(params.entropy, sequence, head, row) = 0;
  }
}

// With an output index, rows that no query names.
void clear_outputs(const AttentionOutputs& outputs, Stream stream) {
  const bool packed = outputs.out.rank == 3;
  ClearParams params;
  params.out = rows_view(outputs.out, packed, DType::f32);
  params.lse = scalar_view(outputs.lse, packed);
  params.entropy = scalar_view(outputs.entropy, packed);
  params.heads = static_cast<int32_t>(outputs.out.dim(-3));
  params.rows = static_cast<int32_t>(outputs.out.dim(-2));
  params.width = static_cast<int32_t>(outputs.out.dim(-1));
  params.total = outputs.out.size() / params.width;
  launch(&attention_clear_kernel,
         dim3(static_cast<unsigned>(tile_count(params.total, kClearWarps))), 32 * kClearWarps, 0,
         params, stream, "attention_clear_kernel");
}

void launch_numbers(const BackwardParams& params, Stream stream) {
  const GeometrySource& source = params.problem.source;
  const int64_t blocks = tile_count(source.max_query, kRowWarps) * source.heads * source.sequences;
  launch(&attention_query_numbers_kernel, dim3(static_cast<unsigned>(blocks)), 32 * kRowWarps, 0,
         params, stream, "attention_query_numbers_kernel");
}

void launch_bias_gradient(const BackwardParams& params, const TensorView& dbias, Stream stream) {
  BiasGradient bias;
  bias.data = static_cast<float*>(dbias.data);
  bias.batch = dbias.stride(0);
  bias.head = dbias.stride(1);
  bias.row = dbias.stride(2);
  bias.sequences = static_cast<int32_t>(dbias.dim(0));
  bias.heads = static_cast<int32_t>(dbias.dim(1));
  bias.rows = static_cast<int32_t>(dbias.dim(2));
  bias.columns = static_cast<int32_t>(dbias.dim(3));
  const dim3 blocks(static_cast<unsigned>(tile_count(bias.columns, kBiasTile)),
                    static_cast<unsigned>(tile_count(bias.rows, kBiasTile)),
                    static_cast<unsigned>(bias.sequences * bias.heads));
  if (blocks.x > 0 && blocks.y > 0) {
    attention_bias_gradient_kernel<<<blocks, kBiasTile * kBiasTile, 0,
                                     static_cast<cudaStream_t>(stream.handle)>>>(params, bias);
    cuda::check(cudaGetLastError(), "attention_bias_gradient_kernel");
  }
}

QueryNumbers query_numbers(std::span<std::byte> workspace, int64_t heads, int64_t rows,
                           bool with_entropy) {
  QueryNumbers numbers;
  auto* lists = reinterpret_cast<float*>(workspace.data());
  const int64_t list = (heads * rows * 4 + 63) / 64 * 16;  // floats
  numbers.lse = lists;
  numbers.delta = lists + list;
  numbers.entropy = with_entropy ? lists + 2 * list : nullptr;
  numbers.dentropy = with_entropy ? lists + 3 * list : nullptr;
  numbers.rows = rows;
  return numbers;
}

}  // namespace

bool is_hopper(int device) {
  int major = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) {
    cudaGetLastError();  // not an error of a later launch
    return true;
  }
  return major == 9;
}

void attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       const AttentionOptions& options, Stream stream) {
  if (outputs.out.size() == 0) {
    return;
  }
  if (options.positions.output_index) {
    clear_outputs(outputs, stream);
  }
  switch (operand_dtype({inputs.q, inputs.k, inputs.v})) {
    case DType::bf16:
      return launch_forward<__nv_bfloat16>(outputs, inputs, options, stream);
    case DType::f16:
      return launch_forward<__half>(outputs, inputs, options, stream);
    default:
      return launch_forward<float>(outputs, inputs, options, stream);
  }
}

void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream) {
  const bool packed = static_cast<bool>(options.sequences.cu_query);
  const bool packed_keys = static_cast<bool>(options.sequences.cu_key);
  const DType operand = operand_dtype({inputs.q, inputs.k, inputs.v, saved.dout});
  BackwardParams params;
  params.problem = make_problem(inputs, options, operand, {1, 1});
  const GeometrySource& source = params.problem.source;
  if (source.heads == 0 || source.sequences == 0) {
    return;
  }
  params.out = rows_view(saved.out, packed, operand);
  params.dout = rows_view(saved.dout, packed, operand);
  params.dq = rows_view(gradients.dq, packed, operand);
  params.dk = rows_view(gradients.dk, packed_keys, operand);
  params.dv = rows_view(gradients.dv, packed_keys, operand);
  params.lse = scalar_view(saved.lse, packed);
  params.entropy = scalar_view(saved.entropy, packed);
  params.dlse = scalar_view(saved.dlse, packed);
  params.dentropy = scalar_view(saved.dentropy, packed);
  params.numbers =
      query_numbers(workspace, source.heads,
                    packed ? source.total_query : int64_t{source.sequences} * source.max_query,
                    static_cast<bool>(saved.dentropy));
  params.entropy_order = saved.entropy_order;
  params.accumulate = gradients.accumulate;
  launch_numbers(params, stream);
  if (operand == DType::bf16) {
    launch_backward<__nv_bfloat16>(params, options, stream);
  } else if (operand == DType::f16) {
    launch_backward<__half>(params, options, stream);
  } else {
    launch_backward<float>(params, options, stream);
  }
  if (gradients.dsinks) {
    attention_sink_gradient_kernel<<<static_cast<unsigned>(source.heads), kSinkThreads, 0,
                                     static_cast<cudaStream_t>(stream.handle)>>>(
        params, static_cast<float*>(gradients.dsinks.data), gradients.dsinks.stride(0));
    cuda::check(cudaGetLastError(), "attention_sink_gradient_kernel");
  }
  if (gradients.dbias) {
    launch_bias_gradient(params, gradients.dbias, stream);
  }
}

}  // namespace flashloom::portable
