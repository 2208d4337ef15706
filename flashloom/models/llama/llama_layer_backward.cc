#include <array>
#include <initializer_list>
#include <string>
#include <string_view>

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
           const LlamaSequences& sequences, LlamaRecompute lost, const LlamaWatch& watch)
      : a_(activations),
        w_(workspace),
        layer_(layer),
        gradients_(gradients),
        sequences_(sequences),
        lost_(lost),
        watch_(watch),
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
    const bool before_o = gradients_.input || trains(LlamaGroup::qkv) ||
                          weight_gradient(&LlamaLayerWeights::q_norm) ||
                          weight_gradient(&LlamaLayerWeights::k_norm);
    if (!before_o && !trains(LlamaGroup::o)) {
      return;
    }
    if (lost_ == LlamaRecompute::attention) {
      attend_again();
    }
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
  bool trains(LlamaGroup group) const { return llama_projection_trains(layer_, gradients_, group); }

  bool reads_input(LlamaGroup group) const {
    return llama_projection_reads_input(layer_, gradients_, group);
  }

  ConstTensorView stream() const { return w_.dstream; }

  void project(LlamaGroup group, TensorView dx, std::span<const ConstTensorView> dy,
               ConstTensorView x) {
    llama_projection_backward(dx, dy, x, a_.lora_hidden[static_cast<size_t>(group)],
                              w_.dlora_hidden, w_.dora_products, layer_, gradients_, group);
    if (watch_) {
      tell_projections(group, dx);
    }
  }

  void tell(std::string_view operation, std::initializer_list<TensorView> made) const {
    if (watch_) {
      watch_(operation, {made.begin(), made.size()});
    }
  }

  // Each linear with its parameters' gradients, then the gradient of what all of them read.
  void tell_projections(LlamaGroup group, TensorView dx) const {
    std::string names;
    const auto [first, end] = llama_group_range(group);
    for (size_t i = first; i < end; ++i) {
      const std::string_view full = llama_linear_name(static_cast<LlamaLinear>(i));
      const std::string_view name = full.substr(full.find('.') + 1);
      names += names.empty() ? name : " or " + std::string(name);
      if (gradients_.weights != nullptr) {
        tell(name, {gradients_.weights->linear[i], gradients_.weights->bias[i]});
      }
      if (gradients_.adapters != nullptr) {
        const LlamaAdapter& gradient = gradients_.adapters->gradient[i];
        tell(name, {gradient.a, gradient.b, gradient.magnitude});
      }
    }
    tell(names, {dx});
  }

  TensorView weight_gradient(TensorView LlamaLayerWeights::* tensor) const {
    return gradients_.weights != nullptr ? gradients_.weights->*tensor : TensorView();
  }

  void attend_again() const { llama_attention_forward(a_, w_, layer_, sequences_, {}); }

  /// normed = norm(input), computed again for the gradients of the linears that read it.
  void normalize_again(LlamaGroup group, TensorView rms, ConstTensorView input,
                       ConstTensorView weight) {
    if (!a_.ffn_normed && reads_input(group)) {
      rms_norm_forward(w_.normed, rms, {}, input, {}, weight,
                       {.epsilon = layer_.config.rms_norm_epsilon});
    }
  }

  void feed_forward() {
    if (!a_.ffn_hidden && reads_input(LlamaGroup::down)) {
      swiglu_forward(ffn_hidden_, a_.gate, a_.up);
    }
    project(LlamaGroup::down, w_.dffn_hidden, std::array{stream()}, ffn_hidden_);
    swiglu_backward(a_.gate, a_.up, {}, w_.dffn_hidden, a_.gate, a_.up);
    tell("SwiGLU", {a_.gate, a_.up});
    normalize_again(LlamaGroup::gate_up, a_.ffn_rms, a_.middle, layer_.weights.ffn_norm);
    project(LlamaGroup::gate_up, dnormed_, std::array<ConstTensorView, 2>{a_.gate, a_.up},
            ffn_normed_);
    rms_norm_backward(w_.dstream, weight_gradient(&LlamaLayerWeights::ffn_norm), dnormed_,
                      w_.dstream, a_.middle, a_.ffn_rms, layer_.weights.ffn_norm, w_.norm_backward);
    tell("post_attention_layernorm", {w_.dstream, weight_gradient(&LlamaLayerWeights::ffn_norm)});
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
    tell("attention", {w_.dq, w_.dk, w_.dv});
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
    tell("rotation", {w_.dq, w_.dk});
    dq_ = w_.dq;
    dk_ = w_.dk;
    if (layer_.config.qk_norm) {
      // q and k, as attention read them, have had their last use.
      const auto rows = [&](TensorView heads) { return heads.reshape({heads.size() / dim, dim}); };
      rms_norm_backward(rows(a_.q), weight_gradient(&LlamaLayerWeights::q_norm), rows(w_.dq), {},
                        rows(a_.q_raw), a_.q_rms, layer_.weights.q_norm, w_.norm_backward);
      rms_norm_backward(rows(a_.k), weight_gradient(&LlamaLayerWeights::k_norm), rows(w_.dk), {},
                        rows(a_.k_raw), a_.k_rms, layer_.weights.k_norm, w_.norm_backward);
      tell("q_norm", {a_.q, weight_gradient(&LlamaLayerWeights::q_norm)});
      tell("k_norm", {a_.k, weight_gradient(&LlamaLayerWeights::k_norm)});
      dq_ = a_.q;
      dk_ = a_.k;
    }
  }

  void inputs() {
    if (!gradients_.input && !trains(LlamaGroup::qkv)) {
      return;
    }
    normalize_again(LlamaGroup::qkv, a_.attention_rms, a_.input, layer_.weights.attention_norm);
    project(LlamaGroup::qkv, gradients_.input ? dnormed_ : TensorView(),
            std::array<ConstTensorView, 3>{dq_, dk_, w_.dv}, attention_normed_);
    if (gradients_.input) {
      rms_norm_backward(w_.dstream, weight_gradient(&LlamaLayerWeights::attention_norm), dnormed_,
                        w_.dstream, a_.input, a_.attention_rms, layer_.weights.attention_norm,
                        w_.norm_backward);
      tell("input_layernorm", {w_.dstream, weight_gradient(&LlamaLayerWeights::attention_norm)});
    }
  }

  const LlamaLayerActivations& a_;
  const LlamaWorkspace& w_;
  const LlamaLayer& layer_;
  const LlamaLayerGradients& gradients_;
  const LlamaSequences& sequences_;
  LlamaRecompute lost_;
  const LlamaWatch& watch_;
  TensorView ffn_hidden_, attention_normed_, ffn_normed_;
  TensorView dnormed_;
  TensorView dq_, dk_;
};

}  // namespace

void llama_layer_backward(const LlamaLayerActivations& activations, const LlamaWorkspace& workspace,
                          const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                          const LlamaSequences& sequences, LlamaRecompute lost,
                          const LlamaWatch& watch) {
  Backward(activations, workspace, layer, gradients, sequences, lost, watch).run();
}

}  // namespace flashloom
