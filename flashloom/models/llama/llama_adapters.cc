#include "flashloom/models/llama/llama_adapters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/ops/linear/gemm.h"

namespace flashloom {
namespace {

constexpr MemoryPlan::Id kAbsent = -1;

/// "q_proj" of "self_attn.q_proj".
std::string_view short_name(LlamaLinear linear) {
  const std::string_view name = llama_linear_name(linear);
  return name.substr(name.find('.') + 1);
}

/// Rows of norm `norms` get the norm `magnitude`; zeros stay.
void scale_rows(TensorView weight, ConstTensorView magnitude, ConstTensorView norms) {
  for (int64_t n = 0; n < weight.dim(0); ++n) {
    const float norm = norms.as<float>()[n];
    const float factor = norm > 0 ? magnitude.as<float>()[n] / norm : 0.0f;
    float* row = weight.as<float>() + n * weight.stride(0);
    std::transform(row, row + weight.dim(1), row, [factor](float x) { return factor * x; });
  }
}

}  // namespace

std::array<bool, kLlamaLinears> parse_lora_targets(std::span<const std::string> names) {
  std::array<bool, kLlamaLinears> targets = {};
  for (const std::string& name : names) {
    bool found = false;
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      const std::string_view full = short_name(static_cast<LlamaLinear>(i));
      if (name == full || name == full.substr(0, full.find('_'))) {
        targets[i] = found = true;
      }
    }
    if (!found) {
      throw InvalidArgument("parse_lora_targets", "names",
                            "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj",
                            fmt::format("\"{}\"", name));
    }
  }
  if (names.empty()) {
    throw InvalidArgument("parse_lora_targets", "names", "at least one linear", "none");
  }
  return targets;
}

LoraOptions without_frozen_layers(const LoraOptions& lora, const LlamaFrozen& frozen,
                                  const ModelConfig& config) {
  if (LlamaFrozen{.layers = frozen.layers} != frozen) {
    throw InvalidArgument("finetune", "freeze", "numbers of layers: LoRA trains nothing else",
                          describe(frozen));
  }
  LoraOptions left = lora;
  if (!frozen.layers.empty()) {
    left.layers.clear();
    for (int64_t n = 0; n < config.layers; ++n) {
      if (lora.adapts_layer(n) && !frozen.layer(n)) {
        left.layers.push_back(n);
      }
    }
    if (left.layers.empty()) {
      throw InvalidArgument("finetune", "freeze", "a layer left to train", describe(frozen));
    }
  }
  return left;
}

LlamaAdapters::LlamaAdapters(const ModelConfig& config, const LoraOptions& options, bool trainable,
                             MemoryPlan& plan)
    : options_(options), trainable_(trainable) {
  if (options.rank < 1 || options.rank > config.hidden_size) {
    throw InvalidArgument("LlamaAdapters", "rank",
                          fmt::format("1 to the hidden size {}", config.hidden_size),
                          fmt::format("{}", options.rank));
  }
  if (!std::isfinite(options.alpha) || options.alpha <= 0) {
    throw InvalidArgument("LlamaAdapters", "alpha", "a positive number",
                          fmt::format("{}", options.alpha));
  }
  if (std::find(options.targets.begin(), options.targets.end(), true) == options.targets.end()) {
    throw InvalidArgument("LlamaAdapters", "targets", "at least one linear", "none");
  }
  if (!options.layers.empty() &&
      (!std::is_sorted(options.layers.begin(), options.layers.end()) ||
       options.layers.front() < 0 || options.layers.back() >= config.layers)) {
    throw InvalidArgument("LlamaAdapters", "layers",
                          fmt::format("layers of 0 to {}, ascending", config.layers - 1),
                          fmt::format("{}", fmt::join(options.layers, ", ")));
  }
  constexpr std::array<std::string_view, kLlamaGroups> kGroupNames = {"qkv_proj", "o_proj",
                                                                      "gate_up_proj", "down_proj"};
  for (int64_t n = 0; n < config.layers; ++n) {
    LayerIds layer;
    layer.groups.fill({kAbsent, kAbsent});
    layer.b.fill(kAbsent);
    layer.db.fill(kAbsent);
    layer.magnitude = layer.dmagnitude = layer.norms = layer.b;
    const auto add = [&](std::string_view name, MemoryKind kind, int64_t rows, int64_t columns) {
      return plan.add(fmt::format("layers.{}.{}", n, name), kind, DType::f32, {rows, columns});
    };
    for (size_t g = 0; g < kLlamaGroups; ++g) {
      const auto [first, end] = llama_group_range(static_cast<LlamaGroup>(g));
      int64_t ranks = 0;
      for (size_t i = first; i < end; ++i) {
        const auto linear = static_cast<LlamaLinear>(i);
        if (!options.adapts_layer(n) || !options.adapts(linear)) {
          continue;
        }
        ranks += options.rank;
        const int64_t outputs = llama_linear_shape(config, linear).outputs;
        const std::string name = fmt::format("{}.lora_B", short_name(linear));
        layer.b[i] = add(name, MemoryKind::adapters, outputs, options.rank);
        if (trainable) {
          layer.db[i] = add(name + ".gradient", MemoryKind::gradients, outputs, options.rank);
        }
        if (options.dora) {
          const auto vector = [&](std::string_view what, MemoryKind kind) {
            return plan.add(fmt::format("layers.{}.{}.{}", n, short_name(linear), what), kind,
                            DType::f32, {outputs});
          };
          layer.magnitude[i] = vector("lora_magnitude", MemoryKind::adapters);
          layer.norms[i] = vector("row_norms", MemoryKind::adapters);
          if (trainable) {
            layer.dmagnitude[i] = vector("lora_magnitude.gradient", MemoryKind::gradients);
          }
        }
      }
      if (ranks > 0) {
        const int64_t inputs = llama_linear_shape(config, static_cast<LlamaLinear>(first)).inputs;
        const std::string name = fmt::format("{}.lora_A", kGroupNames[g]);
        layer.groups[g].a = add(name, MemoryKind::adapters, ranks, inputs);
        if (trainable) {
          layer.groups[g].da = add(name + ".gradient", MemoryKind::gradients, ranks, inputs);
        }
      }
    }
    ids_.push_back(layer);
  }
  if (options.dora) {
    const int64_t inputs =
        std::max({config.hidden_size, config.heads * config.head_dim, config.intermediate_size});
    scratch_id_ = plan.add("dora_row_norms", MemoryKind::workspace, DType::f32,
                           {thread_count(), dora_scratch_columns(inputs)});
  }
  layers_ = views([&](MemoryPlan::Id id) { return plan.shape(id); });
}

void LlamaAdapters::bind(const Arena& arena) {
  if (scratch_id_ != kAbsent) {
    scratch_ = arena[scratch_id_];
  }
  layers_ = views([&](MemoryPlan::Id id) { return arena[id]; });
}

std::vector<LlamaLayerAdapters> LlamaAdapters::views(FindView find) const {
  std::vector<LlamaLayerAdapters> layers;
  for (const LayerIds& ids : ids_) {
    LlamaLayerAdapters layer;
    for (size_t g = 0; g < kLlamaGroups; ++g) {
      const auto [first, end] = llama_group_range(static_cast<LlamaGroup>(g));
      int64_t row = 0;
      for (size_t i = first; i < end; ++i) {
        if (ids.b[i] == kAbsent) {
          continue;
        }
        layer.value[i] = {find(ids.groups[g].a).slice(0, row, options_.rank), find(ids.b[i])};
        if (trainable_) {
          layer.gradient[i] = {find(ids.groups[g].da).slice(0, row, options_.rank),
                               find(ids.db[i])};
        }
        if (options_.dora) {
          layer.value[i].magnitude = find(ids.magnitude[i]);
          layer.row_norms[i] = find(ids.norms[i]);
          if (trainable_) {
            layer.gradient[i].magnitude = find(ids.dmagnitude[i]);
          }
        }
        row += options_.rank;
      }
    }
    layers.push_back(layer);
  }
  return layers;
}

void LlamaAdapters::initialize(uint64_t seed, const LlamaWeights& weights) {
  RandomSequence random(seed, RandomStream::adapter_init);
  for (const LlamaLayerAdapters& layer : layers_) {
    for (const LlamaAdapter& adapter : layer.value) {
      if (!adapter.a) {
        continue;
      }
      const float bound = 1.0f / std::sqrt(static_cast<float>(adapter.a.dim(1)));
      float* a = adapter.a.as<float>();
      for (int64_t i = 0; i < adapter.a.size(); ++i) {
        a[i] = random.uniform(-bound, bound);
      }
    }
  }
  clear_b();
  reset_magnitudes(weights);
}

void LlamaAdapters::update_norms(const LlamaWeights& weights) const {
  for (size_t n = 0; n < layers_.size(); ++n) {
    const LlamaLayerWeights& layer = weights.values().layers[n];
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      const LlamaAdapter& adapter = layers_[n].value[i];
      if (adapter.magnitude) {
        dora_row_norms(layers_[n].row_norms[i],
                       {.weight = layer.linear[i],
                        .a = adapter.a,
                        .b = adapter.b,
                        .scale = options_.scale(),
                        .blocks = layer.blocks[i]},
                       scratch_.slice(1, 0, dora_scratch_columns(adapter.a.dim(1))));
      }
    }
  }
}

void LlamaAdapters::reset_magnitudes(const LlamaWeights& weights) const {
  update_norms(weights);
  for (const LlamaLayerAdapters& layer : layers_) {
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      if (const TensorView& magnitude = layer.value[i].magnitude) {
        std::memcpy(magnitude.data, layer.row_norms[i].data,
                    static_cast<size_t>(magnitude.bytes()));
      }
    }
  }
}

void LlamaAdapters::clear_b() {
  for (const LlamaLayerAdapters& layer : layers_) {
    for (const LlamaAdapter& adapter : layer.value) {
      if (adapter.b) {
        std::memset(adapter.b.data, 0, static_cast<size_t>(adapter.b.bytes()));
      }
    }
  }
}

void LlamaAdapters::merge_into(const LlamaWeights& weights) {
  update_norms(weights);
  for (size_t n = 0; n < layers_.size(); ++n) {
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      const LlamaAdapter& adapter = layers_[n].value[i];
      if (!adapter.a) {
        continue;
      }
      const LlamaLayerWeights& layer = weights.values().layers[n];
      check(!layer.blocks[i], "LlamaAdapters::merge_into", "weights", "plain numbers",
            "blocks that an adapter cannot be added to");
      gemm(layer.linear[i], adapter.b, adapter.a, {.alpha = options_.scale(), .beta = 1});
      if (adapter.magnitude) {
        scale_rows(layer.linear[i], adapter.magnitude, layers_[n].row_norms[i]);
      }
    }
  }
  clear_b();
  reset_magnitudes(weights);
}

void LlamaAdapters::append_parameters(std::vector<Parameter>& parameters) const {
  for (size_t n = 0; n < layers_.size(); ++n) {
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      const LlamaAdapter& value = layers_[n].value[i];
      const LlamaAdapter& gradient = layers_[n].gradient[i];
      if (value.a) {
        const std::string name = fmt::format("base_model.model.model.layers.{}.{}.", n,
                                             llama_linear_name(static_cast<LlamaLinear>(i)));
        parameters.push_back(
            {name + "lora_A.weight", ParameterRole::adapter_a, value.a, gradient.a});
        parameters.push_back(
            {name + "lora_B.weight", ParameterRole::adapter_b, value.b, gradient.b});
        if (value.magnitude) {
          parameters.push_back({name + "lora_magnitude_vector", ParameterRole::adapter_magnitude,
                                value.magnitude, gradient.magnitude});
        }
      }
    }
  }
}

}  // namespace flashloom
