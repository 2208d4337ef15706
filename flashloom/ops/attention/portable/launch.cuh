#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <mutex>

#include "flashloom/core/parallel.h"
#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/portable/problem.cuh"

// From the contract's views and options to the kernels' plain parameters.

namespace flashloom::portable {

/// `operand` is the element type that the kernel multiplies.
inline RowsView rows_view(const ConstTensorView& view, bool packed, DType operand) {
  RowsView rows;
  if (!view) {
    return rows;
  }
  rows.data = const_cast<void*>(view.data);
  rows.dtype = view.dtype;
  rows.batch = packed ? 0 : view.stride(0);
  rows.head = view.stride(packed ? 0 : 1);
  rows.row = view.stride(packed ? 1 : 2);
  const auto bytes = static_cast<int64_t>(dtype_bytes(view.dtype));
  rows.chunks = view.dtype == operand && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  for (const int64_t elements : {rows.batch, rows.head, rows.row, view.dim(-1)}) {
    rows.chunks = rows.chunks && elements * bytes % 16 == 0;
  }
  return rows;
}

/// Scalars of rows.
inline RowsView scalar_view(const ConstTensorView& view, bool packed) {
  RowsView rows = rows_view(view, packed, DType::f32);
  rows.chunks = false;
  return rows;
}

/// The largest divisor of a block's side that is at most `limit`; `limit` itself without blocks.
constexpr int32_t side_of_tile(int64_t block, int32_t limit) {
  int32_t side = limit;
  while (block % side != 0) {
    --side;
  }
  return side;
}

inline ScoreRule score_rule(const AttentionOptions& options, int64_t head_dim) {
  const AttentionScore& score = options.score;
  ScoreRule rule;
  rule.scale = score.scale != 0 ? score.scale
                                : static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
  rule.softcap = score.softcap;
  if (score.alibi_slopes) {
    const ConstTensorView& slopes = score.alibi_slopes;
    rule.slopes = static_cast<const float*>(slopes.data);
    rule.slope_batch = slopes.rank == 2 ? slopes.stride(0) : 0;
    rule.slope_head = slopes.stride(-1);
  }
  if (score.bias) {
    const ConstTensorView& bias = score.bias;
    rule.bias = bias.data;
    rule.bias_dtype = bias.dtype;
    rule.bias_batch = bias.dim(0) == 1 ? 0 : bias.stride(0);
    rule.bias_head = bias.dim(1) == 1 ? 0 : bias.stride(1);
    rule.bias_row = bias.dim(2) == 1 ? 0 : bias.stride(2);
  }
  if (score.sinks) {
    rule.sinks = static_cast<const float*>(score.sinks.data);
    rule.sink_stride = score.sinks.stride(0);
  }
  if (options.dropout.probability > 0) {
    rule.dropout = true;
    rule.drop_below =
        static_cast<uint64_t>(static_cast<double>(options.dropout.probability) * 0x1p32);
    rule.keep_factor = 1 / (1 - options.dropout.probability);
    rule.seed = static_cast<const uint64_t*>(options.dropout.seed.data);
    rule.seed_offset = static_cast<const uint64_t*>(options.dropout.offset.data);
  }
  return rule;
}

/// Tiles of at most `rows` queries and `keys` keys.
inline Problem make_problem(const AttentionInputs& inputs, const AttentionOptions& options,
                            DType operand, TileShape tile) {
  const AttentionSequences& sequences = options.sequences;
  const bool packed_keys = static_cast<bool>(sequences.cu_key);
  Problem problem;
  problem.source = geometry_source(inputs, options);
  problem.score = score_rule(options, inputs.q.dim(-1));
  problem.tile = {side_of_tile(options.blocks.block_rows, tile.rows),
                  side_of_tile(options.blocks.block_keys, tile.keys)};
  problem.partial_count =
      options.blocks.bits ? static_cast<int32_t>(options.blocks.bits.dim(0)) : 0;
  problem.head_dim = static_cast<int32_t>(inputs.q.dim(-1));
  problem.value_dim = static_cast<int32_t>(inputs.v.dim(-1));
  problem.q = rows_view(inputs.q, static_cast<bool>(sequences.cu_query), operand);
  problem.k = rows_view(inputs.k, packed_keys, operand);
  problem.v = rows_view(inputs.v, packed_keys, operand);
  if (sequences.page_table) {
    problem.page_table = static_cast<const int32_t*>(sequences.page_table.data);
    problem.page_table_stride = sequences.page_table.stride(0);
    problem.page_size = static_cast<int32_t>(sequences.page_size);
    problem.page_count = static_cast<int32_t>(inputs.k.dim(0));
  }
  return problem;
}

/// The element type that the kernels multiply: that of all tensors, or f32 where they differ.
inline DType operand_dtype(std::initializer_list<ConstTensorView> views) {
  const DType first = views.begin()->dtype;
  return std::all_of(views.begin(), views.end(),
                     [&](const ConstTensorView& view) { return view.dtype == first; })
             ? first
             : DType::f32;
}

template <class Params>
void launch(void (*kernel)(Params), dim3 blocks, int threads, int shared_bytes,
            const Params& params, Stream stream, const char* name) {
  if (blocks.x == 0) {
    return;
  }
  // Up to 48 KB need no leave. Beyond, another thread must not lower what this launch has asked
  // for.
  static std::mutex mutex;
  std::unique_lock lock(mutex, std::defer_lock);
  if (shared_bytes > 48 << 10) {
    lock.lock();
    cuda::check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "cudaFuncSetAttribute");
  }
  kernel<<<blocks, threads, static_cast<size_t>(shared_bytes),
           static_cast<cudaStream_t>(stream.handle)>>>(params);
  cuda::check(cudaGetLastError(), name);
}

}  // namespace flashloom::portable
