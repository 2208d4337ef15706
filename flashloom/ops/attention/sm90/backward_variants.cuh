#pragma once

#include "flashloom/ops/attention/sm90/backward_launch.cuh"

// Which shape of the backward kernel runs.

namespace flashloom::sm90 {

template <class T>
using Backward128 = BackwardShape<T, 128, 64, 2, false, false, false, false>;
template <class T>
using Backward64 = BackwardShape<T, 64, 128, 2, false, true, false, false>;
template <class T>
using BackwardGeneral128 = BackwardShape<T, 128, 64, 2, false, true, false, true>;
template <class T>
using BackwardGeneral64 = BackwardShape<T, 64, 64, 2, true, true, false, true>;

/// Whether scores need more than scale and visibility.
inline bool is_general(const AttentionOptions& options) {
  return options.score.softcap != 0 || options.score.alibi_slopes ||
         options.dropout.probability != 0 || options.blocks.row_offsets;
}

void launch_backward_general(const BackwardCall& call, std::byte* memory, cudaStream_t stream);

}  // namespace flashloom::sm90
