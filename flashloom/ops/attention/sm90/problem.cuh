#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/sm90/schedule.cuh"

// From the contract's views and options to the kernels' plain parameters.

namespace flashloom::sm90 {

/// The tensor with a leading dimension of 1 if it is packed.
template <class View>
View as_batched(View view) {
  if (view.rank == 3) {
    for (int i = 3; i > 0; --i) {
      view.shape[i] = view.shape[i - 1];
      view.strides[i] = view.strides[i - 1];
    }
    view.shape[0] = 1;
    view.strides[0] = 0;
    view.rank = 4;
  }
  return view;
}

/// Limits a bound to what device arithmetic in 32 bits can add up.
inline int32_t clamp_distance(int64_t distance) {
  return distance < 0 ? kUnbounded : static_cast<int32_t>(std::min<int64_t>(distance, kUnbounded));
}

inline Problem make_problem(const ConstTensorView& q, const ConstTensorView& k,
                            const AttentionOptions& options) {
  const AttentionSequences& sequences = options.sequences;
  const auto integers = [](const ConstTensorView& view) {
    return static_cast<const int32_t*>(view.data);
  };
  Problem problem = {};
  const bool packed_q = sequences.cu_query.rank > 0;
  const bool packed_k = sequences.cu_key.rank > 0;
  problem.batch = static_cast<int32_t>(packed_q   ? sequences.cu_query.shape[0] - 1
                                       : packed_k ? sequences.cu_key.shape[0] - 1
                                                  : q.shape[0]);
  problem.heads = static_cast<int32_t>(q.shape[1]);
  problem.heads_per_key = static_cast<int32_t>(q.shape[1] / k.shape[1]);
  problem.query_length = static_cast<int32_t>(packed_q ? sequences.max_query : q.shape[2]);
  problem.key_length = static_cast<int32_t>(packed_k ? sequences.max_key : k.shape[2]);
  problem.left = clamp_distance(options.visibility.left);
  problem.right = clamp_distance(options.visibility.right);
  const AttentionPositions& positions = options.positions;
  if (positions.query_start) {
    problem.query_start = static_cast<int32_t>(*positions.query_start);
    problem.key_start = static_cast<int32_t>(*positions.key_start);
  } else if (positions.offset) {
    problem.query_start = static_cast<int32_t>(*positions.offset);
  } else {
    problem.default_offset = 1;
  }
  problem.total_query = static_cast<int32_t>(q.shape[2]);
  problem.total_key = static_cast<int32_t>(k.shape[2]);
  problem.status = static_cast<int32_t*>(options.execution.status.data);
  problem.cu_query = integers(sequences.cu_query);
  problem.cu_key = integers(sequences.cu_key);
  problem.used_query = integers(sequences.used_query);
  problem.used_key = integers(sequences.used_key);
  return problem;
}

inline float score_scale(const AttentionOptions& options, int64_t dim) {
  return options.score.scale != 0 ? options.score.scale : 1 / std::sqrt(static_cast<float>(dim));
}

inline int32_t device_multiprocessors() {
  int device = 0;
  int count = 0;
  cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  cuda::check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
              "cudaDeviceGetAttribute");
  return count;
}

/// Blocks that fill the allowed share of the device, one a multiprocessor.
inline int32_t multiprocessors(const AttentionOptions& options) {
  const float share = options.execution.multiprocessor_share;
  return std::max(1, static_cast<int32_t>(static_cast<float>(device_multiprocessors()) * share));
}

/// Heads that are worked on side by side, a multiple of `unit`: units of `bytes` each within
/// `budget`. Sections are of equal width: a narrow last one would leave blocks idle beside its
/// longest tile.
inline int32_t heads_side_by_side(int64_t heads, int64_t bytes, int64_t unit, int64_t budget) {
  const int64_t fit = std::max<int64_t>(1, budget / std::max<int64_t>(bytes, 1));
  const int64_t units = heads / unit;
  const int64_t sections = (units + fit - 1) / fit;
  return static_cast<int32_t>((units + sections - 1) / sections * unit);
}

}  // namespace flashloom::sm90
