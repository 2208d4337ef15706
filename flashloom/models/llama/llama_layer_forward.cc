#include <array>
#include <cstring>

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

}  // namespace

void llama_layer_forward(const LlamaLayerActivations& a, const LlamaWorkspace& w,
                         const LlamaLayer& layer, const LlamaSequences& sequences,
                         ConstTensorView residual) {
  const RmsNormOptions norm = {.epsilon = layer.config.rms_norm_epsilon};
  if (residual) {
    rms_norm_forward(w.normed, a.attention_rms, a.input, w.branch, residual,
                     layer.weights.attention_norm, norm);
  } else {
    rms_norm_forward(w.normed, a.attention_rms, {}, a.input, {}, layer.weights.attention_norm,
                     norm);
  }
  const auto project = [&](LlamaGroup group, std::span<const TensorView> y, ConstTensorView x) {
    llama_projection_forward(y, a.lora_hidden[static_cast<size_t>(group)], x, layer, group);
  };
  project(LlamaGroup::qkv, std::array{a.q_raw, a.k_raw, a.v}, w.normed);
  rotate(a, layer, sequences.positions);
  attend(a, w, layer.config.head_dim, sequences);
  project(LlamaGroup::o, std::array{w.branch}, a.attended);

  rms_norm_forward(w.normed, a.ffn_rms, a.middle, w.branch, a.input, layer.weights.ffn_norm, norm);
  project(LlamaGroup::gate_up, std::array{a.gate, a.up}, w.normed);
  swiglu_forward(w.ffn_hidden, a.gate, a.up);
  project(LlamaGroup::down, std::array{w.branch}, w.ffn_hidden);
}

}  // namespace flashloom
