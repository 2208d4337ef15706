#include "flashloom/models/llama/llama_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
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
  present(std::string(kLlamaEmbeddingName), Role::embedding, values.embedding, gradients.embedding);
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
    present(std::string(kLlamaHeadName), Role::matrix, values.head, gradients.head);
  }
}

std::string weight_name(size_t layer, size_t linear) {
  return fmt::format("model.layers.{}.{}.weight", layer,
                     llama_linear_name(static_cast<LlamaLinear>(linear)));
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

std::optional<int64_t> llama_layer_of(std::string_view tensor) {
  constexpr std::string_view kLayers = "model.layers.";
  int64_t index = 0;
  if (!tensor.starts_with(kLayers)) {
    return std::nullopt;
  }
  const char* end = tensor.data() + tensor.size();
  const auto [rest, code] = std::from_chars(tensor.data() + kLayers.size(), end, index);
  return code == std::errc() && rest != end && *rest == '.' ? std::optional(index) : std::nullopt;
}

std::vector<LlamaTensorSize> llama_tensor_sizes(const ModelConfig& config) {
  MemoryPlan plan;
  std::vector<Parameter> parameters;
  LlamaWeights(config, /*trainable=*/false, DType::f32, plan).append_parameters(parameters);
  std::vector<LlamaTensorSize> sizes;
  sizes.reserve(parameters.size());
  for (const Parameter& parameter : parameters) {
    sizes.push_back({parameter.name, parameter.value.size(), llama_layer_of(parameter.name)});
  }
  return sizes;
}

LlamaBlockFormats llama_block_formats(const ModelFiles& files) {
  LlamaBlockFormats formats(static_cast<size_t>(files.config().layers));
  bool any = false;
  for (size_t n = 0; n < formats.size(); ++n) {
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      formats[n][i] = files.block_format(weight_name(n, i));
      any = any || formats[n][i] != nullptr;
    }
  }
  return any ? formats : LlamaBlockFormats();
}

LlamaWeights::LlamaWeights(const ModelConfig& config, bool trainable, DType matrices,
                           MemoryPlan& plan, const LlamaFrozen& frozen,
                           const LlamaBlockFormats& blocks)
    : config_(config), frozen_(frozen), formats_(blocks), trainable_(trainable) {
  check(blocks.empty() || (!trainable && static_cast<int64_t>(blocks.size()) == config.layers),
        "LlamaWeights", "blocks",
        fmt::format("{} layers of weights that are not trained", config.layers),
        fmt::format("{} layers{}", blocks.size(), trainable ? ", trained" : ""));
  check(matrices == DType::f32 || matrices == DType::bf16, "LlamaWeights", "matrices",
        "f32 or bf16", std::string(dtype_name(matrices)));
  value_ids_ = this->plan(plan, MemoryKind::weights, matrices, "", {});
  const auto shape = [&](MemoryPlan::Id id) { return plan.shape(id); };
  values_ = views(shape, value_ids_, {});
  if (trainable) {
    gradient_ids_ = this->plan(plan, MemoryKind::gradients, DType::f32, ".gradient", frozen_);
    gradients_ = views(shape, gradient_ids_, frozen_);
  }
}

LlamaWeights::Ids LlamaWeights::plan(MemoryPlan& plan, MemoryKind kind, DType matrices,
                                     std::string_view suffix, const LlamaFrozen& left_out) const {
  const ModelConfig& c = config_;
  // Nothing where no rows are left.
  const auto add = [&](std::string_view name, std::initializer_list<int64_t> shape) {
    return *shape.begin() > 0 ? plan.add(fmt::format("{}{}", name, suffix), kind,
                                         shape.size() == 2 ? matrices : DType::f32, shape)
                              : kAbsent;
  };
  const auto rows = [&](std::string_view name, int64_t count, bool present = true) {
    return present && !left_out.tensor(name) ? count : 0;
  };
  Ids ids;
  ids.embedding =
      add("embed_tokens", {rows(kLlamaEmbeddingName, c.vocabulary_size), c.hidden_size});
  for (int64_t n = 0; n < c.layers; ++n) {
    const std::string prefix = fmt::format("layers.{}.", n);
    const std::string full = "model." + prefix;
    LayerIds layer;
    layer.blocks.fill(kAbsent);
    const auto norm = [&](std::string_view name, std::string_view place, int64_t size,
                          bool present = true) {
      return add(fmt::format("{}{}", prefix, name),
                 {rows(fmt::format("{}{}{}.weight", full, place, name), size, present)});
    };
    layer.attention_norm = norm("input_layernorm", "", c.hidden_size);
    layer.q_norm = norm("q_norm", "self_attn.", c.head_dim, c.qk_norm);
    layer.k_norm = norm("k_norm", "self_attn.", c.head_dim, c.qk_norm);
    layer.ffn_norm = norm("post_attention_layernorm", "", c.hidden_size);
    for (size_t g = 0; g < kLlamaGroups; ++g) {
      constexpr std::array<std::string_view, kLlamaGroups> kNames = {"qkv_proj", "o_proj",
                                                                     "gate_up_proj", "down_proj"};
      const auto [first, end] = llama_group_range(static_cast<LlamaGroup>(g));
      int64_t outputs = 0;
      int64_t biases = 0;
      for (size_t i = first; i < end; ++i) {
        const auto linear = static_cast<LlamaLinear>(i);
        const std::string name = fmt::format("{}{}", full, llama_linear_name(linear));
        const int64_t size = llama_linear_shape(c, linear).outputs;
        if (const BlockFormat* format = block_format(static_cast<size_t>(n), i)) {
          const BlockMatrix matrix = {
              .format = format, .rows = size, .columns = llama_linear_shape(c, linear).inputs};
          layer.blocks[i] = plan.add(fmt::format("{}{}", prefix, llama_linear_name(linear)), kind,
                                     DType::u8, {matrix.bytes()});
        } else {
          outputs += rows(name + ".weight", size);
        }
        biases += rows(name + ".bias", size, llama_linear_has_bias(c, linear));
      }
      const int64_t inputs = llama_linear_shape(c, static_cast<LlamaLinear>(first)).inputs;
      layer.weights[g] = add(fmt::format("{}{}", prefix, kNames[g]), {outputs, inputs});
      layer.biases[g] = add(fmt::format("{}{}.bias", prefix, kNames[g]), {biases});
    }
    ids.layers.push_back(layer);
  }
  ids.final_norm = add("norm", {rows("model.norm.weight", c.hidden_size)});
  ids.head =
      add("lm_head", {rows(kLlamaHeadName, c.vocabulary_size, !c.tied_embeddings), c.hidden_size});
  return ids;
}

LlamaTensors LlamaWeights::views(FindView find, const Ids& ids, const LlamaFrozen& left_out) const {
  const auto view_of = [&](MemoryPlan::Id id) { return id == kAbsent ? TensorView() : find(id); };
  LlamaTensors tensors;
  tensors.embedding = view_of(ids.embedding);
  tensors.final_norm = view_of(ids.final_norm);
  tensors.head = config_.tied_embeddings ? tensors.embedding : view_of(ids.head);
  for (size_t n = 0; n < ids.layers.size(); ++n) {
    const LayerIds& layer = ids.layers[n];
    LlamaLayerWeights w;
    w.attention_norm = view_of(layer.attention_norm);
    w.ffn_norm = view_of(layer.ffn_norm);
    w.q_norm = view_of(layer.q_norm);
    w.k_norm = view_of(layer.k_norm);
    for (size_t g = 0; g < kLlamaGroups; ++g) {
      const auto [first, end] = llama_group_range(static_cast<LlamaGroup>(g));
      int64_t row = 0;
      int64_t bias_row = 0;
      // The analyzer does not see that no group ends behind the last linear.
      for (size_t i = first; i < std::min(end, kLlamaLinears); ++i) {
        const auto linear = static_cast<LlamaLinear>(i);
        const std::string name = fmt::format("model.layers.{}.{}", n, llama_linear_name(linear));
        const int64_t rows = llama_linear_shape(config_, linear).outputs;
        if (layer.blocks[i] != kAbsent) {
          w.blocks[i] = {.data = static_cast<const std::byte*>(find(layer.blocks[i]).data),
                         .format = block_format(n, i),
                         .rows = rows,
                         .columns = llama_linear_shape(config_, linear).inputs};
        } else if (layer.weights[g] != kAbsent && !left_out.tensor(name + ".weight")) {
          w.linear[i] = find(layer.weights[g]).slice(0, row, rows);
          row += rows;
        }
        if (layer.biases[g] != kAbsent && !left_out.tensor(name + ".bias")) {
          w.bias[i] = find(layer.biases[g]).slice(0, bias_row, rows);
          bias_row += rows;
        }
      }
    }
    tensors.layers.push_back(w);
  }
  return tensors;
}

bool LlamaWeights::trains_layer(int64_t index) const {
  if (!trainable_) {
    return false;
  }
  const LayerIds& layer = gradient_ids_.layers[static_cast<size_t>(index)];
  const auto present = [](MemoryPlan::Id id) { return id != kAbsent; };
  return std::any_of(layer.weights.begin(), layer.weights.end(), present) ||
         std::any_of(layer.biases.begin(), layer.biases.end(), present) ||
         present(layer.attention_norm) || present(layer.q_norm) || present(layer.k_norm) ||
         present(layer.ffn_norm);
}

void LlamaWeights::bind(const Arena& arena) {
  arena_ = &arena;
  const auto memory = [&](MemoryPlan::Id id) { return arena[id]; };
  values_ = views(memory, value_ids_, {});
  if (trainable_) {
    gradients_ = views(memory, gradient_ids_, frozen_);
  }
}

void LlamaWeights::load(const ModelFiles& files) {
  for_each_tensor(values_, LlamaTensors(), config_.tied_embeddings,
                  [&](const std::string& name, ParameterRole, TensorView value, TensorView) {
                    files.read_into(name, value, /*require_finite=*/true);
                  });
  for (size_t n = 0; n < formats_.size(); ++n) {
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      if (const BlockMatrix& blocks = values_.layers[n].blocks[i]) {
        files.read_blocks(weight_name(n, i), blocks,
                          static_cast<std::byte*>((*arena_)[value_ids_.layers[n].blocks[i]].data));
      }
    }
  }
}

void LlamaWeights::append_parameters(std::vector<Parameter>& parameters) const {
  for_each_tensor(
      values_, gradients_, config_.tied_embeddings,
      [&](const std::string& name, ParameterRole role, TensorView value, TensorView gradient) {
        parameters.push_back({name, role, value, gradient});
      });
}

}  // namespace flashloom
