#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>

#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/decode/decode_params.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

namespace flashloom::decode {

// From a call to what kernels are told of it.

/// Strides of the first dimension (0 for packed tensors, which have none), heads and rows.
struct Strides {
  int64_t sequence, head, row;

  Strides(const ConstTensorView& view, bool packed)
      : sequence(packed ? 0 : view.strides[0]),
        head(view.strides[packed ? 0 : 1]),
        row(view.strides[packed ? 1 : 2]) {}
};

inline KeyRows key_rows(const ConstTensorView& view, bool packed) {
  const Strides strides(view, packed);
  return {static_cast<const char*>(view.data), strides.sequence * 2, strides.head * 2,
          strides.row * 2, static_cast<int32_t>(view.dim(-1) / 8)};
}

inline Params make_params(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          const AttentionOptions& options) {
  Params params = {};
  GeometrySource& source = params.source;
  source = geometry_source(inputs, options);
  // Device code adds positions in 64 bits; further away than this is out of sight.
  const auto near = [](int64_t value) {
    return std::clamp<int64_t>(value, -(int64_t{1} << 40), int64_t{1} << 40);
  };
  if (source.has_starts) {
    source.has_offset = true;
    source.offset = near(source.query_start) - near(source.key_start);
  }
  source.offset = near(source.offset);
  source.left = near(source.left);
  source.right = near(source.right);
  const AttentionSequences& sequences = options.sequences;
  const bool packed = static_cast<bool>(sequences.cu_query);
  params.group = Divisor(source.heads / source.key_heads);
  const Strides q(inputs.q, packed);
  params.q = inputs.q.data;
  params.q_sequence = q.sequence;
  params.q_head = q.head;
  params.q_row = q.row;
  params.q_chunks =
      reinterpret_cast<uintptr_t>(params.q) % 16 == 0 && (q.sequence | q.head | q.row) % 8 == 0;
  params.k = key_rows(inputs.k, static_cast<bool>(sequences.cu_key));
  params.v = key_rows(inputs.v, static_cast<bool>(sequences.cu_key));
  if (sequences.page_table) {
    params.pages = static_cast<const int32_t*>(sequences.page_table.data);
    params.pages_sequence = sequences.page_table.stride(0);
    params.page_size = Divisor(sequences.page_size);
    params.page_count = static_cast<int32_t>(inputs.k.dim(0));
  }
  const Strides out(outputs.out, packed);
  params.out = outputs.out.data;
  params.out_sequence = out.sequence;
  params.out_head = out.head;
  params.out_row = out.row;
  params.out_is_f32 = outputs.out.dtype == DType::f32 ? 1 : 0;
  params.value_dim = static_cast<int32_t>(inputs.v.dim(-1));
  if (outputs.lse) {
    const Strides lse(outputs.lse, packed);
    params.lse = static_cast<float*>(outputs.lse.data);
    params.lse_sequence = lse.sequence;
    params.lse_head = lse.head;
    params.lse_row = lse.row;
  }
  const AttentionScore& score = options.score;
  const float scale =
      score.scale != 0 ? score.scale : 1 / std::sqrt(static_cast<float>(inputs.q.dim(-1)));
  constexpr float kLog2e = std::numbers::log2e_v<float>;
  params.adjusts = score.softcap > 0 || score.alibi_slopes || scale <= 0 ? 1 : 0;
  params.unit = params.adjusts != 0 ? 1 : scale * kLog2e;
  params.unit_natural = params.adjusts != 0 ? std::numbers::ln2_v<float> : scale;
  params.scale = scale * kLog2e;
  params.cap = score.softcap * kLog2e;
  params.cap_scale = score.softcap > 0 ? 2 * kLog2e * scale / score.softcap : 0;
  if (score.alibi_slopes) {
    const bool each = score.alibi_slopes.rank == 2;
    params.alibi = static_cast<const float*>(score.alibi_slopes.data);
    params.alibi_sequence = each ? score.alibi_slopes.stride(0) : 0;
    params.alibi_head = score.alibi_slopes.stride(each ? 1 : 0);
  }
  if (score.sinks) {
    params.sinks = static_cast<const float*>(score.sinks.data);
    params.sinks_head = score.sinks.stride(0);
  }
  params.status = static_cast<int32_t*>(options.execution.status.data);
  return params;
}

/// Rows of the boxes by which the copy engine fetches tiles of `tile_keys` keys: tiles, or what of
/// them lies in one page; 0 where it cannot, and threads copy.
inline int32_t box_rows(const AttentionInputs& inputs, const AttentionSequences& sequences,
                        int32_t tile_keys) {
  for (const ConstTensorView* view : {&inputs.k, &inputs.v}) {
    bool mapped = view->size() > 0;
    for (int i = 0; i + 1 < view->rank; ++i) {
      // Bytes of a stride fit 40 bits; a stride of 0 (one head for all) is none for the engine.
      mapped =
          mapped && view->shape[i] < (int64_t{1} << 31) &&
          (view->shape[i] == 1 || (view->strides[i] > 0 && view->strides[i] < (int64_t{1} << 38)));
    }
    if (!mapped) {
      return 0;
    }
  }
  if (!sequences.page_table) {
    return tile_keys;
  }
  // The swizzle repeats every 8 rows, so boxes start at multiples of 8.
  const auto rows = static_cast<int32_t>(std::gcd<int64_t>(sequences.page_size, tile_keys));
  return rows % 8 == 0 ? rows : 0;
}

template <class Shape>
typename Shape::KernelParams make_kernel_params(const AttentionOutputs& outputs,
                                                const AttentionInputs& inputs,
                                                const AttentionOptions& options) {
  typename Shape::KernelParams params = {};
  static_cast<Params&>(params) = make_params(outputs, inputs, options);
  if constexpr (Shape::kProducer) {
    params.box_rows = box_rows(inputs, options.sequences, Shape::kTileKeys);
    params.keys_packed = inputs.k.rank == 3 ? 1 : 0;
    const auto rows = static_cast<uint32_t>(params.box_rows);
    params.k_map = cuda::make_tile_map(sm90::as_batched(inputs.k), rows);
    params.v_map = cuda::make_tile_map(sm90::as_batched(inputs.v), rows);
  }
  return params;
}

}  // namespace flashloom::decode
