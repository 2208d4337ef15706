#pragma once

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/sm90/forward_kernel.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

namespace flashloom::sm90 {

template <class Shape>
void launch_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    int32_t* counter, const AttentionOptions& options, cudaStream_t stream) {
  const ConstTensorView q = as_batched(inputs.q);
  const ConstTensorView k = as_batched(inputs.k);
  const ConstTensorView v = as_batched(inputs.v);
  const TensorView out = as_batched(outputs.out);
  ForwardParams params = {};
  params.problem = make_problem(q, k, options);
  params.out = out.data;
  params.out_batch = out.strides[0];
  params.out_head = out.strides[1];
  params.out_row = out.strides[2];
  if (outputs.lse) {
    const bool packed = outputs.lse.rank == 2;
    params.lse = static_cast<float*>(outputs.lse.data);
    params.lse_batch = packed ? 0 : outputs.lse.strides[0];
    params.lse_head = outputs.lse.strides[packed ? 0 : 1];
    params.lse_row = outputs.lse.strides[packed ? 1 : 2];
  }
  params.sinks = static_cast<const float*>(options.score.sinks.data);
  params.scale = score_scale(options, q.shape[3]);
  params.row_tiles = (params.problem.query_length + Shape::kRows - 1) / Shape::kRows;
  const int64_t heads = int64_t{params.problem.batch} * params.problem.heads;
  params.tiles = static_cast<int32_t>(params.row_tiles * heads);
  if (params.tiles == 0) {
    return;
  }
  if (options.visibility.right >= 0 && options.visibility.left < 0) {
    const int64_t bytes = int64_t{4} * params.problem.key_length * Shape::kDim;
    // Wider sections balance better, narrower ones stay in the L2 cache (50 MB); runs fwd7, fwd8.
    const int64_t budget = int64_t{params.problem.key_length >= 2048 ? 64 : 32} << 20;
    params.section = heads_side_by_side(heads, bytes, params.problem.heads_per_key, budget);
  }
  if (counter != nullptr) {
    params.counter = counter;
    cuda::check(cudaMemsetAsync(counter, 0, sizeof(*counter), stream), "cudaMemsetAsync");
  }
  const CUtensorMap q_map = cuda::make_tile_map(q, Shape::kRows);
  const CUtensorMap k_map = cuda::make_tile_map(k, Shape::kKeys);
  const CUtensorMap v_map = cuda::make_tile_map(v, Shape::kKeys);
  auto* kernel = &attention_forward_kernel<Shape>;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes),
              "cudaFuncSetAttribute");
  const int32_t blocks = std::min(params.tiles, multiprocessors(options));
  kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(params, q_map, k_map, v_map);
  cuda::check(cudaGetLastError(), "attention_forward_kernel");
}

}  // namespace flashloom::sm90
