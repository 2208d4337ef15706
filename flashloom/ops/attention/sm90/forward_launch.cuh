#pragma once

#include <numbers>

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/sm90/forward_kernel.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

namespace flashloom::sm90 {

/// One call, as the launchers of the head dimensions take it.
struct ForwardCall {
  const AttentionOutputs& outputs;
  const AttentionInputs& inputs;
  const AttentionOptions& options;
  int32_t* counter;  // or null, see ForwardParams
  int32_t* order;    // or null: room for the order of tiles
  cudaStream_t stream;
};

// Each in a file of its own, so that they compile side by side. Dimensions are those of q and v
// rounded up to the next of 64, 96, 128, 192, 256.
template <class T>
void launch_forward_64(const ForwardCall& call);
template <class T>
void launch_forward_128(const ForwardCall& call, int64_t dim);
template <class T>
void launch_forward_256(const ForwardCall& call, int64_t dim);
template <class T>
void launch_forward_blocks(const ForwardCall& call, int64_t dim);  // up to 128
template <class T>
void launch_forward_general(const ForwardCall& call, int64_t dim);

/// Zeroes the counter and puts the tiles of a block mask, of `rows` queries, into `order`: long
/// lists first in sections of `section` heads, for `walkers` that draw them.
void order_lists(const ForwardParams& params, int32_t rows, int32_t section, int32_t walkers,
                 int32_t* order, cudaStream_t stream);

inline ForwardRule forward_rule(const AttentionInputs& inputs, const AttentionOptions& options,
                                float scale) {
  ForwardRule rule = {};
  rule.adjusts = options.score.softcap != 0 || options.score.scale < 0;
  rule.exclude_self = options.positions.exclude_self;
  rule.softcap = options.score.softcap;
  rule.slope_unit = rule.adjusts ? kLog2E : 1 / scale;
  if (const float inner = scale / std::max(rule.softcap, 1e-30f); rule.softcap > 0) {
    rule.cap_inner = inner;
    rule.cap_outer = rule.softcap * kLog2E;
    float power = scale * kLog2E;
    rule.curve[0] = power;
    for (int i = 0; i < 5; ++i) {
      power *= inner * inner;
      rule.curve[i + 1] = kCurve[i] * power;
    }
    // Powers must not leave the range of floats.
    rule.curve_reach =
        std::abs(inner) > 1e-3f && std::abs(inner) < 1e3f ? kCurveReach / std::abs(inner) : 0;
  }
  if (const ConstTensorView& slopes = options.score.alibi_slopes) {
    rule.slopes = static_cast<const float*>(slopes.data);
    rule.slope_batch = slopes.rank == 2 ? slopes.strides[0] : 0;
    rule.slope_head = slopes.strides[slopes.rank - 1];
  }
  if (const AttentionDropout& dropout = options.dropout; dropout.probability > 0) {
    rule.seed = static_cast<const uint64_t*>(dropout.seed.data);
    rule.offset = static_cast<const uint64_t*>(dropout.offset.data);
    rule.drop_below = static_cast<uint32_t>(attention_dropout_threshold(dropout.probability));
    rule.kept = 1 / (1 - dropout.probability);
  }
  if (options.blocks.block_rows > 0) {
    const GeometrySource source = geometry_source(inputs, options);
    rule.blocks = {source.block_rows,
                   source.block_keys,
                   source.block_offsets,
                   source.block_entries,
                   source.block_partial,
                   source.block_entry_count,
                   0,
                   source.block_keys / 32,
                   source.bits};
    if (options.blocks.bits) {
      rule.blocks.partial_count = static_cast<int32_t>(options.blocks.bits.shape[0]);
    }
  }
  return rule;
}

inline constexpr int64_t kShortKeys = 512;

inline ForwardParams forward_params(const ForwardCall& call, int32_t rows) {
  const ConstTensorView q = as_batched(call.inputs.q);
  const ConstTensorView k = as_batched(call.inputs.k);
  const TensorView out = as_batched(call.outputs.out);
  ForwardParams params = {};
  params.problem = make_problem(q, k, call.options);
  params.out = out.data;
  params.out_batch = out.strides[0];
  params.out_head = out.strides[1];
  params.out_row = out.strides[2];
  if (const TensorView& lse = call.outputs.lse) {
    const bool packed = lse.rank == 2;
    params.lse = static_cast<float*>(lse.data);
    params.lse_batch = packed ? 0 : lse.strides[0];
    params.lse_head = lse.strides[packed ? 0 : 1];
    params.lse_row = lse.strides[packed ? 1 : 2];
  }
  params.sinks = static_cast<const float*>(call.options.score.sinks.data);
  params.scale = score_scale(call.options, q.shape[3]);
  params.value_columns = static_cast<int32_t>(out.shape[3]);
  params.tensor_keys = static_cast<int32_t>(k.shape[2]);
  params.row_tiles = (params.problem.query_length + rows - 1) / rows;
  params.tiles = params.row_tiles * params.problem.batch * params.problem.heads;
  params.counter = call.counter;
  // Nobody reads results again. Short rows leave the L2 cache to keys and values, which are most of
  // what moves (run win7); with 8k keys the hint costs 3 %.
  params.out_hint =
      params.problem.key_length <= kShortKeys ? cuda::kEvictFirst : cuda::kEvictNormal;
  params.rule = forward_rule(call.inputs, call.options, params.scale);
  params.scale_log2 = params.rule.adjusts ? 1 : params.scale * kLog2E;
  params.inverse_scale = 1 / params.scale_log2;
  params.scale_natural = params.rule.adjusts ? std::numbers::ln2_v<float> : params.scale;
  return params;
}

/// The order of tiles: under a causal mask long ones first, heads in sections that are worked on
/// side by side.
template <class Shape>
void order_tiles(ForwardParams& params, const AttentionOptions& options) {
  const Problem& problem = params.problem;
  params.draw_at = 1;  // 0 is 2 % slower at 2k, 2 the same (run fwd19)
  if (options.visibility.right < 0 || options.visibility.left >= 0) {
    return;
  }
  // Narrow sections stay in the L2 cache (50 MB), wide ones balance better; runs fwd19, fwd20.
  constexpr int64_t kColumns = 4096;  // of all heads
  constexpr int64_t kBudget = int64_t{64} << 20;
  const int64_t bytes = int64_t{4} * problem.key_length * Shape::kDim;
  params.section = heads_side_by_side(int64_t{problem.batch} * problem.heads,
                                      std::max(bytes, kBudget * Shape::kDim / kColumns),
                                      problem.heads_per_key, kBudget);
}

// Keys and values of heads whose lists are worked on side by side: of 16, 32 and 64 MB the best;
// run csr2.
inline constexpr int64_t kOrderedBytes = int64_t{16} << 20;

template <class Shape>
void launch_forward(const ForwardCall& call) {
  const ConstTensorView q = as_batched(call.inputs.q);
  // Without keys nothing is visible, and any memory can stand in for them.
  const bool any_keys = call.inputs.k.size() > 0;
  const ConstTensorView k = any_keys ? as_batched(call.inputs.k) : q;
  const ConstTensorView v = any_keys ? as_batched(call.inputs.v) : q;
  ForwardParams params = forward_params(call, Shape::kRows);
  if (params.tiles == 0 || q.size() == 0) {
    return;
  }
  order_tiles<Shape>(params, call.options);
  const int32_t blocks = std::min(params.tiles, multiprocessors(call.options));
  if (call.order != nullptr && params.tiles > blocks * Shape::kTeams) {
    const int64_t bytes = int64_t{4} * params.problem.key_length * Shape::kDim;
    const int64_t heads = int64_t{params.problem.batch} * params.problem.heads;
    const int32_t section =
        heads_side_by_side(heads, bytes, params.problem.heads_per_key, kOrderedBytes);
    params.section = 0;
    params.order = call.order;
    order_lists(params, Shape::kRows, section, blocks * Shape::kTeams, call.order, call.stream);
  } else if (params.counter != nullptr) {
    cuda::check(cudaMemsetAsync(params.counter, 0, sizeof(*params.counter), call.stream),
                "cudaMemsetAsync");
  }
  const CUtensorMap q_map = cuda::make_tile_map(q, Shape::kRows);
  const CUtensorMap k_map = cuda::make_tile_map(k, Shape::kKeys);
  const CUtensorMap v_map = cuda::make_tile_map(v, Shape::kKeys);
  const CUtensorMap out_map = cuda::make_tile_map(as_batched(call.outputs.out), 16);
  auto* kernel = &attention_forward_kernel<Shape>;
  constexpr uint32_t kSharedBytes = Shape::kTeams * Shape::kSharedBytes;
  cuda::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "cudaFuncSetAttribute");
  cuda::prepare_debug(call.stream);
  kernel<<<blocks, Shape::kThreads, kSharedBytes, call.stream>>>(params, q_map, k_map, v_map,
                                                                 out_map);
  cuda::check(cudaGetLastError(), "attention_forward_kernel");
}

}  // namespace flashloom::sm90
