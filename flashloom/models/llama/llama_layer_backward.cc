#include <array>

#include "flashloom/models/llama/llama_attention.h"
#include "flashloom/models/llama/llama_layer.h"
#include "flashloom/models/llama/llama_projection.h"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/rms_norm/rms_norm.h"
#include "flashloom/ops/rope/rope.h"
#include "flashloom/ops/swiglu/swiglu.h"

namespace flashloom {
namespace {

/// One layer's backward pass, stage by stage.
class Backward {
 public:
  Backward(const LlamaLayerActivations& activations, const LlamaWorkspace& workspace,
           const LlamaLayer& layer, const LlamaLayerGradients& gradients,
           const LlamaSequences& sequences, LlamaRecompute lost)
      : a_(activations),
        w_(workspace),
        layer_(layer),
        gradients_(gradients),
        sequences_(sequences),
        lost_(lost),
        ffn_hidden_(activations.ffn_hidden ? activations.ffn_hidden
                                           : workspace.backward_ffn_hidden),
        attention_normed_(activations.attention_normed ? activations.attention_normed
                                                       : workspace.normed),
        ffn_normed_(activations.ffn_normed ? activations.ffn_normed : workspace.normed),
        dnormed_(workspace.branch) {}

  void run() {
    if (lost_ == LlamaRecompute::blocks) {
      attend_again();
      llama_gate_up_forward(a_, w_, layer_);
    }
    feed_forward();
    if (!gradients_.input && !trains(LlamaGroup::qkv) && !trains(LlamaGroup::o)) {
      return;
    }
    if (lost_ == LlamaRecompute::attention) {
      attend_again();
    }
    const bool before_o = gradients_.input || trains(LlamaGroup::qkv);
    project(LlamaGroup::o, before_o ? w_.dattended : TensorView(), std::array{stream()},
            a_.attended);
    if (!before_o) {
      return;
    }
    attention();
    rotation();
    inputs();
  }

 private:
  bool trains(LlamaGroup group) const {
    return llama_projection_reads_input(layer_, gradients_, group);
  }

  ConstTensorView stream() const { return w_.dstream; }

  void project(LlamaGroup group, TensorView dx, std::span<const ConstTensorView> dy,
               ConstTensorView x) {
    llama_projection_backward(dx, dy, x, a_.lora_hidden[static_cast<size_t>(group)],
                              w_.dlora_hidden, layer_, gradients_, group);
  }

  TensorView weight_gradient(TensorView LlamaLayerWeights::* tensor) const {
    return gradients_.weights != nullptr ? gradients_.weights->*tensor : TensorView();
  }

  void attend_again() const { llama_attention_forward(a_, w_, layer_, sequences_, {}); }

  /// normed = norm(input), computed again for the gradients of the linears that read it.
  void normalize_again(LlamaGroup group, TensorView rms, ConstTensorView input,
                       ConstTensorView weight) {
    if (!a_.ffn_normed && trains(group)) {
      rms_norm_forward(w_.normed, rms, {}, input, {}, weight,
                       {.epsilon = layer_.config.rms_norm_epsilon});
    }
  }

  void feed_forward() {
    if (!a_.ffn_hidden && trains(LlamaGroup::down)) {
      swiglu_forward(ffn_hidden_, a_.gate, a_.up);
    }
    project(LlamaGroup::down, w_.dffn_hidden, std::array{stream()}, ffn_hidden_);
    swiglu_backward(a_.gate, a_.up, {}, w_.dffn_hidden, a_.gate, a_.up);
    normalize_again(LlamaGroup::gate_up, a_.ffn_rms, a_.middle, layer_.weights.ffn_norm);
    project(LlamaGroup::gate_up, dnormed_, std::array<ConstTensorView, 2>{a_.gate, a_.up},
            ffn_normed_);
    rms_norm_backward(w_.dstream, weight_gradient(&LlamaLayerWeights::ffn_norm), dnormed_,
                      w_.dstream, a_.middle, a_.ffn_rms, layer_.weights.ffn_norm, w_.norm_backward);
  }

  void attention() {
    const int64_t dim = layer_.config.head_dim;
    AttentionSaved saved;
    saved.out = llama_heads(a_.attended, dim);
    saved.lse = a_.lse;
    saved.dout = llama_heads(w_.dattended, dim);
    attention_backward(
        attention_gradients(llama_heads(w_.dq, dim), llama_heads(w_.dk, dim),
                            llama_heads(w_.dv, dim)),
        {.q = llama_heads(a_.q, dim), .k = llama_heads(a_.k, dim), .v = llama_heads(a_.v, dim)},
        saved, w_.attention_backward,
        llama_packed_attention(sequences_.cu_seqlens, sequences_.max_length));
  }

  /// dq_, dk_: the gradients of the projections' outputs.
  void rotation() {
    const int64_t dim = layer_.config.head_dim;
    RopeBiasGradients dbias;
    if (gradients_.weights != nullptr && !layer_.config.qk_norm) {
      dbias.q = gradients_.weights->bias[0];
      dbias.k = gradients_.weights->bias[1];
      dbias.v = gradients_.weights->bias[2];
    }
    rope_backward(w_.dq.split(1, dim), w_.dk.split(1, dim), w_.dv.split(1, dim),
                  sequences_.positions, layer_.rope_frequencies, dbias);
    dq_ = w_.dq;
    dk_ = w_.dk;
    if (layer_.config.qk_norm) {
      // q and k, as attention read them, have had their last use.
      const auto rows = [&](TensorView heads) { return heads.reshape({heads.size() / dim, dim}); };
      rms_norm_backward(rows(a_.q), weight_gradient(&LlamaLayerWeights::q_norm), rows(w_.dq), {},
                        rows(a_.q_raw), a_.q_rms, layer_.weights.q_norm, w_.norm_backward);
      rms_norm_backward(rows(a_.k), weight_gradient(&LlamaLayerWeights::k_norm), rows(w_.dk), {},
                        rows(a_.k_raw), a_.k_rms, layer_.weights.k_norm, w_.norm_backward);
      dq_ = a_.q;
      dk_ = a_.k;
    }
  }

  void inputs() {
    normalize_again(LlamaGroup::qkv, a_.attention_rms, a_.input, layer_.weights.attention_norm);
    project(LlamaGroup::qkv, gradients_.input ? dnormed_ : TensorView(),
            std::array<ConstTensorView, 3>{dq_, dk_, w_.dv}, attention_normed_);
    if (gradients_.input) {
      rms_norm_backward(w_.dstream, weight_gradient(&LlamaLayerWeights::attention_norm), dnormed_,
                        w_.dstream, a_.input, a_.attention_rms, layer_.weights.attention_norm,
                        w_.norm_backward);
    }
  }

  const LlamaLayerActivations& a_;
  const LlamaWorkspace& w_;
  const LlamaLayer& layer_;
  const LlamaLayerGradients& gradients_;
  const LlamaSequences& sequences_;
  LlamaRecompute lost_;
  TensorView ffn_hidden_, attention_normed_, ffn_normed_;
  TensorView dnormed_;
  TensorView dq_, dk_;
};

}  // namespace

void llama_layer_backward(const LlamaLayerActivations& activations, const LlamaWorkspace& workspace,
                          const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                          const LlamaSequences& sequences, LlamaRecompute lost) {
  Backward(activations, workspace, layer, gradients, sequences, lost).run();
}

}  // namespace flashloom
