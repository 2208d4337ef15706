#pragma once

#include <cstdint>

#include "flashloom/core/tensor_view.h"
#include "flashloom/ops/attention/attention.h"

namespace flashloom {

/// The heads of a token-major tensor as attention wants them: (T, H D) becomes (H, T, D).
template <class View>
View llama_heads(const View& rows, int64_t head_dim) {
  return rows.split(1, head_dim).transpose(0, 1);
}

/// The same with a leading dimension of 1, for one sequence that is not packed: (1, H, T, D).
template <class View>
View llama_sequence_heads(const View& rows, int64_t head_dim) {
  return rows.split(1, head_dim).split(0, rows.dim(0)).transpose(1, 2);
}

inline AttentionOutputs attention_outputs(TensorView out, TensorView lse = {}) {
  AttentionOutputs outputs;
  outputs.out = out;
  outputs.lse = lse;
  return outputs;
}

inline AttentionGradients attention_gradients(TensorView dq, TensorView dk, TensorView dv) {
  AttentionGradients gradients;
  gradients.dq = dq;
  gradients.dk = dk;
  gradients.dv = dv;
  return gradients;
}

/// Causal attention within each document.
inline AttentionOptions llama_packed_attention(ConstTensorView cu_seqlens, int64_t max_length) {
  AttentionOptions options;
  options.sequences.cu_query = cu_seqlens;
  options.sequences.cu_key = cu_seqlens;
  options.sequences.max_query = max_length;
  options.sequences.max_key = max_length;
  options.visibility.right = 0;
  return options;
}

/// Causal attention of the last tokens of one sequence to all of it.
inline AttentionOptions llama_sequence_attention() {
  AttentionOptions options;
  options.visibility.right = 0;
  return options;
}

}  // namespace flashloom
