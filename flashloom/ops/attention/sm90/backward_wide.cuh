#pragma once

#include "flashloom/ops/attention/sm90/backward_variants.cuh"
#include "flashloom/ops/attention/sm90/backward_wide_keys.cuh"
#include "flashloom/ops/attention/sm90/backward_wide_queries.cuh"

// Launches of the kernels for heads of up to 256 columns.

namespace flashloom::sm90 {

// Of the L2 cache, for the heads of a section.
inline constexpr int64_t kWideCacheBytes = int64_t{32} << 20;

template <class Shape>
void launch_wide_queries(const BackwardCall& call, const BackwardRowParams& rows,
                         cudaStream_t stream) {
  const AttentionInputs& inputs = call.inputs;
  QueriesParams params = queries_params(call, rows, Shape::kQueries);
  const int64_t heads = queries_heads(rows.problem);
  if (params.descending && rows.problem.cu_query == nullptr) {
    params.section = heads_side_by_side(heads, int64_t{4} * rows.problem.key_length * Shape::kDim,
                                        1, kWideCacheBytes);
  }
  launch_backward_kernel<Shape>(
      &attention_backward_kernel_queries<Shape>, "attention_backward_kernel_queries",
      static_cast<uint32_t>(params.blocks * heads), params, inputs, call.saved.dout, stream, true);
}

template <class Shape>
void launch_wide_keys(const BackwardCall& call, const BackwardRowParams& rows,
                      cudaStream_t stream) {
  const AttentionInputs& inputs = call.inputs;
  BackwardParams params = backward_params(call, rows, Shape::kKeys);
  const int64_t heads = backward_heads(rows.problem);
  if (call.options.visibility.right >= 0 && call.options.visibility.left < 0 &&
      rows.problem.cu_key == nullptr) {
    const int64_t bytes =
        int64_t{4} * rows.problem.query_length * Shape::kDim * rows.problem.heads_per_key;
    params.order = backward_order(rows.problem, params.key_tiles,
                                  heads_side_by_side(heads, bytes, 1, kWideCacheBytes));
  }
  launch_backward_kernel<Shape>(&attention_backward_kernel_keys<Shape>,
                                "attention_backward_kernel_keys",
                                static_cast<uint32_t>(params.key_tiles * heads), params, inputs,
                                call.saved.dout, stream, true);
}

/// The kernels overlap: that of queries waits for the rows, and lets that of keys start only then,
/// so that its blocks begin where the last ones of queries leave multiprocessors.
template <class T, int kDim, bool kAdjusts>
void launch_wide(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  const BackwardWorkspace place =
      backward_workspace(call.inputs, call.saved, call.options, kQueryPlace, 0);
  const BackwardRowParams rows = backward_rows(call, place, memory);
  launch_backward_prepare<row_lanes(kDim), kQueryPlace>(rows, place.places, stream);
  launch_wide_queries<WideQueriesShape<T, kDim, kAdjusts>>(call, rows, stream);
  launch_wide_keys<WideKeysShape<T, kDim, kAdjusts>>(call, rows, stream);
  launch_backward_sinks(rows, kQueryPlace, stream);
}

template <bool kAdjusts>
void launch_wide_storage(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    if (backward_width(call.inputs) > 192) {
      launch_wide<T, 256, kAdjusts>(call, memory, stream);
    } else {
      launch_wide<T, 192, kAdjusts>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
