#pragma once

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/sm90/backward_kernel.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

namespace flashloom::sm90 {

/// Where the parts of the backward workspace lie, in bytes.
struct BackwardWorkspace {
  int64_t lse, delta, dq, turns, end;
  int64_t query_tiles;
};

inline BackwardWorkspace backward_workspace(const Problem& problem, int64_t dim, int64_t queries) {
  BackwardWorkspace workspace = {};
  workspace.query_tiles = (problem.query_length + queries - 1) / queries;
  const int64_t tiles = int64_t{problem.batch} * problem.heads * workspace.query_tiles;
  workspace.delta = workspace.lse + tiles * queries * 4;
  workspace.dq = workspace.delta + tiles * queries * 4;
  workspace.turns = workspace.dq + tiles * queries * dim * 4;
  workspace.end = workspace.turns + tiles * 8;
  return workspace;
}

inline RowTensor row_tensor(const ConstTensorView& view, bool scalars) {
  const int heads = view.rank - (scalars ? 2 : 3);
  return {const_cast<void*>(view.data), heads == 1 ? view.strides[0] : 0, view.strides[heads],
          view.strides[heads + 1]};
}

template <class Shape>
void launch_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, std::byte* memory,
                     const AttentionOptions& options, cudaStream_t stream) {
  using T = typename Shape::T;
  const ConstTensorView q = as_batched(inputs.q);
  const ConstTensorView k = as_batched(inputs.k);
  const ConstTensorView v = as_batched(inputs.v);
  const ConstTensorView dout = as_batched(saved.dout);
  const TensorView dk = as_batched(gradients.dk);
  const TensorView dv = as_batched(gradients.dv);
  const Problem problem = make_problem(q, k, options);
  const BackwardWorkspace place = backward_workspace(problem, Shape::kDim, Shape::kQueries);
  if (problem.batch == 0 || problem.heads == 0) {
    return;
  }
  BackwardRowParams rows = {};
  rows.problem = problem;
  rows.out = row_tensor(saved.out, false);
  rows.dout = row_tensor(saved.dout, false);
  rows.dq = row_tensor(gradients.dq, false);
  rows.lse = row_tensor(saved.lse, true);
  if (saved.dlse) {
    rows.dlse = row_tensor(saved.dlse, true);
  }
  rows.padded_lse = reinterpret_cast<float*>(memory + place.lse);
  rows.delta = reinterpret_cast<float*>(memory + place.delta);
  rows.dq_sum = reinterpret_cast<float*>(memory + place.dq);
  rows.scale = score_scale(options, Shape::kDim);
  rows.query_tiles = static_cast<int32_t>(place.query_tiles);
  const dim3 row_grid(rows.query_tiles, problem.heads, problem.batch);
  attention_backward_prepare_kernel<T, Shape::kDim, Shape::kQueries>
      <<<row_grid, 256, 0, stream>>>(rows);
  cuda::check(cudaGetLastError(), "attention_backward_prepare_kernel");

  BackwardParams params = {};
  params.problem = problem;
  params.dk = dk.data;
  params.dk_batch = dk.strides[0];
  params.dk_head = dk.strides[1];
  params.dk_row = dk.strides[2];
  params.dv = dv.data;
  params.dv_batch = dv.strides[0];
  params.dv_head = dv.strides[1];
  params.dv_row = dv.strides[2];
  params.lse = rows.padded_lse;
  params.delta = rows.delta;
  params.dq = rows.dq_sum;
  if (options.execution.deterministic) {
    params.turns = reinterpret_cast<int32_t*>(memory + place.turns);
    cuda::check(cudaMemsetAsync(params.turns, 0, place.end - place.turns, stream),
                "cudaMemsetAsync");
  }
  params.scale = rows.scale;
  params.query_tiles = rows.query_tiles;
  params.key_tiles = (problem.key_length + Shape::kKeys - 1) / Shape::kKeys;
  const int64_t heads = int64_t{problem.batch} * (problem.heads / problem.heads_per_key);
  if (options.visibility.right >= 0 && options.visibility.left < 0) {
    const int64_t bytes = int64_t{8} * problem.query_length * Shape::kDim * problem.heads_per_key;
    params.section = heads_side_by_side(heads, bytes, 1, int64_t{32} << 20);
  }
  const CUtensorMap q_map = cuda::make_tile_map(q, Shape::kQueries);
  const CUtensorMap k_map = cuda::make_tile_map(k, Shape::kKeys);
  const CUtensorMap v_map = cuda::make_tile_map(v, Shape::kKeys);
  const CUtensorMap dout_map = cuda::make_tile_map(dout, Shape::kQueries);
  auto* kernel = &attention_backward_kernel<Shape>;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes),
              "cudaFuncSetAttribute");
  const auto blocks = static_cast<uint32_t>(params.key_tiles * heads);
  kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(params, q_map, k_map, v_map,
                                                                   dout_map);
  cuda::check(cudaGetLastError(), "attention_backward_kernel");
  attention_backward_finish_kernel<T, Shape::kDim, Shape::kQueries>
      <<<row_grid, 256, 0, stream>>>(rows);
  cuda::check(cudaGetLastError(), "attention_backward_finish_kernel");
}

}  // namespace flashloom::sm90
