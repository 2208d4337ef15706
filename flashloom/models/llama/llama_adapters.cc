#include "flashloom/models/llama/llama_adapters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "flashloom/core/error.h"
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
  layers_ = views([&](MemoryPlan::Id id) { return plan.shape(id); });
}

void LlamaAdapters::bind(const Arena& arena) {
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
        row += options_.rank;
      }
    }
    layers.push_back(layer);
  }
  return layers;
}

void LlamaAdapters::initialize(uint64_t seed) {
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
  for (size_t n = 0; n < layers_.size(); ++n) {
    for (size_t i = 0; i < kLlamaLinears; ++i) {
      const LlamaAdapter& adapter = layers_[n].value[i];
      if (adapter.a) {
        gemm(weights.values().layers[n].linear[i], adapter.b, adapter.a,
             {.alpha = options_.scale(), .beta = 1});
      }
    }
  }
  clear_b();
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
      }
    }
  }
}

}  // namespace flashloom
