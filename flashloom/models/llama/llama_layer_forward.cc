#include <array>
#include <cstring>

#include "flashloom/core/error.h"
#include "flashloom/models/llama/llama_attention.h"
#include "flashloom/models/llama/llama_layer.h"
#include "flashloom/models/llama/llama_projection.h"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/rms_norm/rms_norm.h"
#include "flashloom/ops/rope/rope.h"
#include "flashloom/ops/swiglu/swiglu.h"

namespace flashloom {
namespace {

/// QK norm, then bias and rotation: q_raw, k_raw (and v's bias) to what attention reads.
void rotate(const LlamaLayerActivations& a, const LlamaLayer& layer, ConstTensorView positions) {
  const int64_t dim = layer.config.head_dim;
  RopeBias bias;
  if (layer.config.qk_norm) {
    const RmsNormOptions norm = {.epsilon = layer.config.rms_norm_epsilon};
    const auto rows = [&](TensorView heads) { return heads.reshape({heads.size() / dim, dim}); };
    rms_norm_forward(rows(a.q), a.q_rms, {}, rows(a.q_raw), {}, layer.weights.q_norm, norm);
    rms_norm_forward(rows(a.k), a.k_rms, {}, rows(a.k_raw), {}, layer.weights.k_norm, norm);
  } else {
    bias.q = layer.weights.bias[0];
    bias.k = layer.weights.bias[1];
    bias.v = layer.weights.bias[2];
  }
  rope_forward(a.q.split(1, dim), a.k.split(1, dim), a.v.split(1, dim), positions,
               layer.rope_frequencies, bias);
}

/// Rows of k or v into the cache.
void append_rows(TensorView cache, int64_t first, ConstTensorView rows) {
  if (cache.data == nullptr) {
    throw InvalidArgument("llama_layer_forward", "sequences", "a cache of keys and one of values",
                          "one of them");
  }
  const auto bytes = static_cast<size_t>(rows.dim(1)) * dtype_bytes(rows.dtype);
  for (int64_t t = 0; t < rows.dim(0); ++t) {
    std::memcpy(cache.select(0, first + t).data, rows.select(0, t).data, bytes);
  }
}

void attend(const LlamaLayerActivations& a, const LlamaWorkspace& w, int64_t dim,
            const LlamaSequences& sequences) {
  if (!sequences.cached_k) {
    attention_forward(
        attention_outputs(llama_heads(a.attended, dim), a.lse),
        {.q = llama_heads(a.q, dim), .k = llama_heads(a.k, dim), .v = llama_heads(a.v, dim)},
        w.attention_forward, llama_packed_attention(sequences.cu_seqlens, sequences.max_length));
    return;
  }
  append_rows(sequences.cached_k, sequences.cached_tokens, a.k);
  append_rows(sequences.cached_v, sequences.cached_tokens, a.v);
  const int64_t keys = sequences.cached_tokens + a.k.dim(0);
  attention_forward(attention_outputs(llama_sequence_heads(a.attended, dim)),
                    {.q = llama_sequence_heads(a.q, dim),
                     .k = llama_sequence_heads(sequences.cached_k.slice(0, 0, keys), dim),
                     .v = llama_sequence_heads(sequences.cached_v.slice(0, 0, keys), dim)},
                    w.attention_forward, llama_sequence_attention());
}

void project(const LlamaLayerActivations& a, const LlamaLayer& layer, LlamaGroup group,
             std::span<const TensorView> y, ConstTensorView x) {
  llama_projection_forward(y, a.lora_hidden[static_cast<size_t>(group)], x, layer, group);
}

}  // namespace

void llama_attention_forward(const LlamaLayerActivations& a, const LlamaWorkspace& w,
                             const LlamaLayer& layer, const LlamaSequences& sequences,
                             ConstTensorView residual) {
  const RmsNormOptions norm = {.epsilon = layer.config.rms_norm_epsilon};
  const TensorView normed = a.attention_normed ? a.attention_normed : w.normed;
  if (residual) {
    rms_norm_forward(normed, a.attention_rms, a.input, w.branch, residual,
                     layer.weights.attention_norm, norm);
  } else {
    rms_norm_forward(normed, a.attention_rms, {}, a.input, {}, layer.weights.attention_norm, norm);
  }
  project(a, layer, LlamaGroup::qkv, std::array{a.q_raw, a.k_raw, a.v}, normed);
  rotate(a, layer, sequences.positions);
  attend(a, w, layer.config.head_dim, sequences);
}

void llama_gate_up_forward(const LlamaLayerActivations& a, const LlamaWorkspace& w,
                           const LlamaLayer& layer) {
  project(a, layer, LlamaGroup::o, std::array{w.branch}, a.attended);
  const TensorView normed = a.ffn_normed ? a.ffn_normed : w.normed;
  rms_norm_forward(normed, a.ffn_rms, a.middle, w.branch, a.input, layer.weights.ffn_norm,
                   {.epsilon = layer.config.rms_norm_epsilon});
  project(a, layer, LlamaGroup::gate_up, std::array{a.gate, a.up}, normed);
}

void llama_down_forward(const LlamaLayerActivations& a, const LlamaWorkspace& w,
                        const LlamaLayer& layer) {
  const TensorView hidden = a.ffn_hidden ? a.ffn_hidden : w.ffn_hidden;
  swiglu_forward(hidden, a.gate, a.up);
  project(a, layer, LlamaGroup::down, std::array{w.branch}, hidden);
}

void llama_layer_forward(const LlamaLayerActivations& activations, const LlamaWorkspace& workspace,
                         const LlamaLayer& layer, const LlamaSequences& sequences,
                         ConstTensorView residual) {
  llama_attention_forward(activations, workspace, layer, sequences, residual);
  llama_gate_up_forward(activations, workspace, layer);
  llama_down_forward(activations, workspace, layer);
}

}  // namespace flashloom
