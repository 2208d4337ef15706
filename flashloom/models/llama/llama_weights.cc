#include "flashloom/models/llama/llama_weights.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/io/model_files.h"

namespace flashloom {
namespace {

constexpr MemoryPlan::Id kAbsent = -1;

/// Calls visit(name, role, value, gradient) for every tensor of the model, in the order of a file.
template <class Visit>
void for_each_tensor(const LlamaTensors& values, const LlamaTensors& gradients, bool tied,
                     Visit visit) {
  using Role = ParameterRole;
  const auto present = [&](const std::string& name, Role role, TensorView value,
                           TensorView gradient) {
    if (value) {
      visit(name, role, value, gradient);
    }
  };
  present("model.embed_tokens.weight", Role::embedding, values.embedding, gradients.embedding);
  for (size_t n = 0; n < values.layers.size(); ++n) {
    const LlamaLayerWeights& layer = values.layers[n];
    const LlamaLayerWeights dlayer =
        gradients.layers.empty() ? LlamaLayerWeights() : gradients.layers[n];
    const std::string prefix = fmt::format("model.layers.{}.", n);
    present(prefix + "input_layernorm.weight", Role::vector, layer.attention_norm,
            dlayer.attention_norm);
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      const std::string name =
          fmt::format("{}{}", prefix, llama_linear_name(static_cast<LlamaLinear>(i)));
      present(name + ".weight", Role::matrix, layer.linear[i], dlayer.linear[i]);
      present(name + ".bias", Role::vector, layer.bias[i], dlayer.bias[i]);
    }
    present(prefix + "self_attn.q_norm.weight", Role::vector, layer.q_norm, dlayer.q_norm);
    present(prefix + "self_attn.k_norm.weight", Role::vector, layer.k_norm, dlayer.k_norm);
    present(prefix + "post_attention_layernorm.weight", Role::vector, layer.ffn_norm,
            dlayer.ffn_norm);
  }
  present("model.norm.weight", Role::vector, values.final_norm, gradients.final_norm);
  if (!tied) {
    present("lm_head.weight", Role::matrix, values.head, gradients.head);
  }
}

}  // namespace

std::string_view llama_linear_name(LlamaLinear linear) {
  constexpr std::array<std::string_view, kLlamaLinears> kNames = {
      "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
      "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  return kNames[static_cast<size_t>(linear)];
}

LlamaLinearShape llama_linear_shape(const ModelConfig& config, LlamaLinear linear) {
  switch (linear) {
    case LlamaLinear::q:
      return {config.heads * config.head_dim, config.hidden_size};
    case LlamaLinear::k:
    case LlamaLinear::v:
      return {config.kv_heads * config.head_dim, config.hidden_size};
    case LlamaLinear::o:
      return {config.hidden_size, config.heads * config.head_dim};
    case LlamaLinear::gate:
    case LlamaLinear::up:
      return {config.intermediate_size, config.hidden_size};
    case LlamaLinear::down:
      break;
  }
  return {config.hidden_size, config.intermediate_size};
}

bool llama_linear_has_bias(const ModelConfig& config, LlamaLinear linear) {
  switch (linear) {
    case LlamaLinear::q:
    case LlamaLinear::k:
    case LlamaLinear::v:
      return config.attention_bias;
    case LlamaLinear::o:
      return config.attention_output_bias;
    case LlamaLinear::gate:
    case LlamaLinear::up:
    case LlamaLinear::down:
      break;
  }
  return config.mlp_bias;
}

LlamaWeights::LlamaWeights(const ModelConfig& config, bool trainable, DType matrices,
                           MemoryPlan& plan, const LlamaFrozen& frozen)
    : config_(config), trainable_(trainable) {
  check(matrices == DType::f32 || matrices == DType::bf16, "LlamaWeights", "matrices",
        "f32 or bf16", std::string(dtype_name(matrices)));
  value_ids_ = this->plan(plan, MemoryKind::weights, matrices, "", {});
  const auto shape = [&](MemoryPlan::Id id) { return plan.shape(id); };
  values_ = views(shape, value_ids_);
  if (trainable) {
    gradient_ids_ = this->plan(plan, MemoryKind::gradients, DType::f32, ".gradient", frozen);
    gradients_ = views(shape, gradient_ids_);
  }
}

LlamaWeights::Ids LlamaWeights::plan(MemoryPlan& plan, MemoryKind kind, DType matrices,
                                     std::string_view suffix, const LlamaFrozen& left_out) const {
  const ModelConfig& c = config_;
  const auto add = [&](std::string_view name, std::initializer_list<int64_t> shape,
                       bool present = true) {
    return present ? plan.add(fmt::format("{}{}", name, suffix), kind,
                              shape.size() == 2 ? matrices : DType::f32, shape)
                   : kAbsent;
  };
  const int64_t q_size = c.heads * c.head_dim;
  const int64_t kv_size = c.kv_heads * c.head_dim;
  Ids ids;
  ids.embedding = add("embed_tokens", {c.vocabulary_size, c.hidden_size}, !left_out.embeddings);
  for (int64_t n = 0; n < c.layers; ++n) {
    const std::string prefix = fmt::format("layers.{}.", n);
    const bool here = !left_out.layer(n);
    const bool norms = here && !left_out.norms;
    LayerIds layer;
    layer.attention_norm = add(prefix + "input_layernorm", {c.hidden_size}, norms);
    layer.qkv = add(prefix + "qkv_proj", {q_size + 2 * kv_size, c.hidden_size}, here);
    layer.qkv_bias =
        add(prefix + "qkv_proj.bias", {q_size + 2 * kv_size}, here && c.attention_bias);
    layer.o = add(prefix + "o_proj", {c.hidden_size, q_size}, here);
    layer.o_bias = add(prefix + "o_proj.bias", {c.hidden_size}, here && c.attention_output_bias);
    layer.q_norm = add(prefix + "q_norm", {c.head_dim}, norms && c.qk_norm);
    layer.k_norm = add(prefix + "k_norm", {c.head_dim}, norms && c.qk_norm);
    layer.ffn_norm = add(prefix + "post_attention_layernorm", {c.hidden_size}, norms);
    layer.gate_up = add(prefix + "gate_up_proj", {2 * c.intermediate_size, c.hidden_size}, here);
    layer.gate_up_bias =
        add(prefix + "gate_up_proj.bias", {2 * c.intermediate_size}, here && c.mlp_bias);
    layer.down = add(prefix + "down_proj", {c.hidden_size, c.intermediate_size}, here);
    layer.down_bias = add(prefix + "down_proj.bias", {c.hidden_size}, here && c.mlp_bias);
    ids.layers.push_back(layer);
  }
  ids.final_norm = add("norm", {c.hidden_size}, !left_out.norms);
  ids.head =
      add("lm_head", {c.vocabulary_size, c.hidden_size}, !c.tied_embeddings && !left_out.head);
  return ids;
}

LlamaTensors LlamaWeights::views(FindView find, const Ids& ids) const {
  const auto view_of = [&](MemoryPlan::Id id) { return id == kAbsent ? TensorView() : find(id); };
  LlamaTensors tensors;
  tensors.embedding = view_of(ids.embedding);
  tensors.final_norm = view_of(ids.final_norm);
  tensors.head = config_.tied_embeddings ? tensors.embedding : view_of(ids.head);
  for (const LayerIds& layer : ids.layers) {
    LlamaLayerWeights w;
    w.attention_norm = view_of(layer.attention_norm);
    w.ffn_norm = view_of(layer.ffn_norm);
    w.q_norm = view_of(layer.q_norm);
    w.k_norm = view_of(layer.k_norm);
    const std::array<MemoryPlan::Id, kLlamaGroups> weights = {layer.qkv, layer.o, layer.gate_up,
                                                              layer.down};
    const std::array<MemoryPlan::Id, kLlamaGroups> biases = {layer.qkv_bias, layer.o_bias,
                                                             layer.gate_up_bias, layer.down_bias};
    for (size_t g = 0; g < kLlamaGroups; ++g) {
      const auto [first, end] = llama_group_range(static_cast<LlamaGroup>(g));
      int64_t row = 0;
      for (size_t i = first; i < end; ++i) {
        const int64_t rows = llama_linear_shape(config_, static_cast<LlamaLinear>(i)).outputs;
        if (weights[g] != kAbsent) {
          w.linear[i] = view_of(weights[g]).slice(0, row, rows);
        }
        if (biases[g] != kAbsent) {
          w.bias[i] = view_of(biases[g]).slice(0, row, rows);
        }
        row += rows;
      }
    }
    tensors.layers.push_back(w);
  }
  return tensors;
}

void LlamaWeights::bind(const Arena& arena) {
  const auto memory = [&](MemoryPlan::Id id) { return arena[id]; };
  values_ = views(memory, value_ids_);
  if (trainable_) {
    gradients_ = views(memory, gradient_ids_);
  }
}

void LlamaWeights::load(const ModelFiles& files) {
  for_each_tensor(values_, LlamaTensors(), config_.tied_embeddings,
                  [&](const std::string& name, ParameterRole, TensorView value, TensorView) {
                    files.read_into(name, value, /*require_finite=*/true);
                  });
}

void LlamaWeights::append_parameters(std::vector<Parameter>& parameters) const {
  for_each_tensor(
      values_, gradients_, config_.tied_embeddings,
      [&](const std::string& name, ParameterRole role, TensorView value, TensorView gradient) {
        parameters.push_back({name, role, value, gradient});
      });
}

}  // namespace flashloom
