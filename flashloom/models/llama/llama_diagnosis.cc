// Which operation makes a number that is not finite: the passes once more, with a look after each.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>

#include "flashloom/models/llama/llama.h"
#include "flashloom/ops/embedding/embedding.h"
#include "flashloom/ops/rms_norm/rms_norm.h"

namespace flashloom {
namespace {

// A matrix or vector of f32, its last dimension contiguous.
bool finite(const ConstTensorView& view) {
  const ConstTensorView rows = view.rank == 1 ? view.reshape({1, view.dim(0)}) : view;
  for (int64_t t = 0; t < rows.dim(0); ++t) {
    const float* row = rows.as<float>() + t * rows.stride(0);
    if (!std::all_of(row, row + rows.dim(1), [](float x) { return std::isfinite(x); })) {
      return false;
    }
  }
  return true;
}

struct Stage {
  const char* name;
  ConstTensorView output;
};

// The first stage whose output is not finite; null if all are.
const char* first_fault(std::initializer_list<Stage> stages) {
  for (const Stage& stage : stages) {
    if (!finite(stage.output)) {
      return stage.name;
    }
  }
  return nullptr;
}

// In the order of the data's way through the layer.
const char* layer_fault(const LlamaLayerActivations& a, const LlamaWorkspace& w,
                        const LlamaLayer& layer, const LlamaSequences& sequences,
                        ConstTensorView residual) {
  llama_attention_forward(a, w, layer, sequences, residual);
  const TensorView attention_normed = a.attention_normed ? a.attention_normed : w.normed;
  if (const char* fault = first_fault({{"input_layernorm", attention_normed},
                                       {"q_proj", a.q_raw},
                                       {"k_proj", a.k_raw},
                                       {"v_proj", a.v},
                                       {"q_norm or rotation", a.q},
                                       {"k_norm or rotation", a.k},
                                       {"attention", a.attended}})) {
    return fault;
  }
  llama_gate_up_forward(a, w, layer);
  if (const char* fault =
          first_fault({{"o_proj", a.middle},
                       {"post_attention_layernorm", a.ffn_normed ? a.ffn_normed : w.normed},
                       {"gate_proj", a.gate},
                       {"up_proj", a.up}})) {
    return fault;
  }
  llama_down_forward(a, w, layer);
  return first_fault(
      {{"SwiGLU", a.ffn_hidden ? a.ffn_hidden : w.ffn_hidden}, {"down_proj", w.branch}});
}

}  // namespace

std::string LlamaModel::first_non_finite(const LlamaBatch& batch) {
  check_batch(batch, /*labels=*/true);
  const int64_t tokens = batch.tokens.dim(0);
  const LlamaWorkspace workspace = activations_.workspace(tokens);
  const LlamaLayerActivations a = activations_.layer(0, tokens, /*save=*/false);
  embedding_forward(a.input, weights_.values().embedding, batch.tokens);
  if (!finite(a.input)) {
    return "the embedding";
  }
  ConstTensorView residual;
  for (int64_t n = 0; n < config_.layers; ++n) {
    if (const char* fault = layer_fault(a, workspace, layer(n), llama_sequences(batch), residual)) {
      return fmt::format("layer {}: {}", n, fault);
    }
    residual = a.middle;
  }
  rms_norm_forward(workspace.normed, workspace.final_rms, workspace.final_input, workspace.branch,
                   residual, weights_.values().final_norm, {.epsilon = config_.rms_norm_epsilon});
  if (!finite(workspace.normed)) {
    return "the final norm";
  }
  if (!std::isfinite(evaluate(batch))) {
    return "the head or the loss";
  }
  std::string found;
  if (options_.training) {
    zero_gradients();  // what is there may be what is asked about
    loss_and_gradients(batch, 1, [&](std::string_view operation, std::span<const TensorView> made) {
      const bool fine = std::all_of(made.begin(), made.end(), [](const TensorView& gradient) {
        return !gradient || finite(gradient);
      });
      if (found.empty() && !fine) {
        const size_t colon = operation.find(": ");  // "layer 3: v_proj"
        const size_t name = colon == std::string_view::npos ? 0 : colon + 2;
        found =
            fmt::format("{}the gradients of {}", operation.substr(0, name), operation.substr(name));
      }
    });
  }
  return found;
}

}  // namespace flashloom
