#include "flashloom/models/llama/llama_activations.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/models/llama/llama_attention.h"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "flashloom/ops/rms_norm/rms_norm.h"

namespace flashloom {
namespace {

constexpr MemoryPlan::Id kAbsent = -1;

/// Adapters' rows of A that read one input.
int64_t group_ranks(const LlamaAdapters& adapters, LlamaGroup group) {
  int64_t ranks = 0;
  if (!adapters.empty()) {
    const auto [first, end] = llama_group_range(group);
    for (size_t i = first; i < end; ++i) {
      ranks += adapters.options().targets[i] ? adapters.options().rank : 0;
    }
  }
  return ranks;
}

TensorView shape_only(std::initializer_list<int64_t> shape) {
  return TensorView(nullptr, DType::f32, shape);
}

/// Workspaces of the largest batch. They are asked for with views that have no memory.
struct AttentionWorkspaceBytes {
  int64_t forward = 0;
  int64_t backward = 0;
};

AttentionWorkspaceBytes attention_workspace(const ModelConfig& config,
                                            const LlamaActivations::Options& options) {
  const int64_t tokens = options.max_tokens;
  const int64_t dim = config.head_dim;
  const TensorView q = shape_only({tokens, config.heads * dim});
  const bool cached = options.cached_tokens > 0;
  const TensorView kv =
      shape_only({cached ? options.cached_tokens : tokens, config.kv_heads * dim});
  AttentionWorkspaceBytes bytes;
  if (cached) {
    const TensorView heads = llama_sequence_heads(q, dim);
    const TensorView keys = llama_sequence_heads(kv, dim);
    bytes.forward = attention_forward_workspace_bytes(
        attention_outputs(heads), {.q = heads, .k = keys, .v = keys}, llama_sequence_attention());
    return bytes;
  }
  const TensorView heads = llama_heads(q, dim);
  const TensorView keys = llama_heads(kv, dim);
  const TensorView lse = shape_only({config.heads, tokens});
  const AttentionInputs inputs = {.q = heads, .k = keys, .v = keys};
  // Few long documents may be cut finer than many short ones, so the need is not largest for the
  // most documents; beyond 64 no kernel has a reason to cut.
  for (int64_t sequences = 1; sequences <= options.max_sequences; ++sequences) {
    if (sequences > 64 && sequences < options.max_sequences) {
      continue;
    }
    const AttentionOptions packed = llama_packed_attention(
        TensorView(nullptr, DType::i32, {sequences + 1}), options.max_length);
    bytes.forward = std::max(bytes.forward, attention_forward_workspace_bytes(
                                                attention_outputs(heads, lse), inputs, packed));
    if (options.training) {
      AttentionSaved saved;
      saved.out = heads;
      saved.lse = lse;
      saved.dout = heads;
      bytes.backward = std::max(
          bytes.backward, attention_backward_workspace_bytes(attention_gradients(heads, keys, keys),
                                                             inputs, saved, packed));
    }
  }
  return bytes;
}

// Outputs of the adapted linears of a group, at most.
int64_t widest_scaled_group(const ModelConfig& config, const LlamaAdapters& adapters) {
  int64_t widest = 0;
  for (size_t g = 0; g < kLlamaGroups; ++g) {
    const auto [first, end] = llama_group_range(static_cast<LlamaGroup>(g));
    int64_t outputs = 0;
    for (size_t i = first; i < end; ++i) {
      const auto linear = static_cast<LlamaLinear>(i);
      outputs += adapters.options().adapts(linear) ? llama_linear_shape(config, linear).outputs : 0;
    }
    widest = std::max(widest, outputs);
  }
  return widest;
}

}  // namespace

LlamaActivations::LlamaActivations(const ModelConfig& config, const LlamaAdapters& adapters,
                                   const Options& options, MemoryPlan& plan)
    : config_(config), options_(options) {
  const int64_t first = std::min(options.lowest_layer, config.layers - 1);
  const int64_t end = options.training ? config.layers : first + 1;
  for (int64_t n = first; n < end; ++n) {
    layers_.push_back(plan_layer(n, adapters, plan));
  }
  plan_workspaces(adapters, plan);
}

LlamaActivations::LayerIds LlamaActivations::plan_layer(int64_t index,
                                                        const LlamaAdapters& adapters,
                                                        MemoryPlan& plan) const {
  const ModelConfig& c = config_;
  const int64_t tokens = options_.max_tokens;
  const int64_t q_size = c.heads * c.head_dim;
  const int64_t kv_size = c.kv_heads * c.head_dim;
  // A buffer of the layer's own, or, where the backward pass fills it again, the first layer's.
  const auto add = [&](std::string_view name, bool kept, MemoryPlan::Id shared,
                       std::initializer_list<int64_t> shape, bool present = true) {
    if (!present) {
      return kAbsent;
    }
    if (!kept && !layers_.empty()) {
      return shared;
    }
    return plan.add(
        kept ? fmt::format("activations.{}.{}", index, name) : fmt::format("activations.{}", name),
        MemoryKind::activations, DType::f32, shape);
  };
  const LlamaRecompute level = options_.recompute;
  const bool inputs = level < LlamaRecompute::norms && options_.training;
  const bool attention = level < LlamaRecompute::attention;
  const bool block = level < LlamaRecompute::blocks;
  const LayerIds& first = layers_.empty() ? LayerIds() : layers_.front();
  LayerIds ids;
  ids.input = add("input", true, kAbsent, {tokens, c.hidden_size});
  ids.attention_rms = add("attention_rms", block, first.attention_rms, {tokens});
  ids.attention_normed = add("attention_normed", true, kAbsent, {tokens, c.hidden_size}, inputs);
  ids.qkv = add("qkv", attention, first.qkv, {tokens, q_size + 2 * kv_size});
  ids.qk_raw = add("qk_raw", attention, first.qk_raw, {tokens, q_size + kv_size}, c.qk_norm);
  ids.qk_rms = add("qk_rms", attention, first.qk_rms, {tokens, c.heads + c.kv_heads}, c.qk_norm);
  ids.attended = add("attended", attention, first.attended, {tokens, q_size});
  ids.lse = add("lse", attention, first.lse, {c.heads, tokens}, options_.cached_tokens == 0);
  ids.middle = add("middle", block, first.middle, {tokens, c.hidden_size});
  ids.ffn_rms = add("ffn_rms", block, first.ffn_rms, {tokens});
  ids.ffn_normed = add("ffn_normed", true, kAbsent, {tokens, c.hidden_size}, inputs);
  ids.gate_up = add("gate_up", block, first.gate_up, {tokens, 2 * c.intermediate_size});
  ids.ffn_hidden = add("ffn_hidden", true, kAbsent, {tokens, c.intermediate_size}, inputs);
  for (size_t g = 0; g < kLlamaGroups; ++g) {
    const auto group = static_cast<LlamaGroup>(g);
    // Without training, all layers share these buffers.
    const bool adapted = !options_.training || adapters.options().adapts_layer(index);
    const int64_t ranks = adapted ? group_ranks(adapters, group) : 0;
    // Down is the one projection that no level does again: only the next layer reads its output.
    ids.lora_hidden[g] = add(fmt::format("lora_hidden{}", g), block || group == LlamaGroup::down,
                             first.lora_hidden[g], {tokens, ranks}, ranks > 0);
  }
  return ids;
}

void LlamaActivations::plan_workspaces(const LlamaAdapters& adapters, MemoryPlan& plan) {
  const ModelConfig& c = config_;
  const int64_t tokens = options_.max_tokens;
  const auto add = [&](std::string_view name, std::initializer_list<int64_t> shape) {
    return plan.add(std::string(name), MemoryKind::workspace, DType::f32, shape);
  };
  const auto add_bytes = [&](std::string_view name, int64_t bytes) {
    return plan.add(std::string(name), MemoryKind::workspace, DType::u8, {bytes});
  };
  const AttentionWorkspaceBytes attention = attention_workspace(c, options_);
  shared_.normed = add("normed", {tokens, c.hidden_size});
  shared_.branch = add("branch", {tokens, c.hidden_size});
  shared_.final_input = add("final_input", {tokens, c.hidden_size});
  shared_.final_rms = add("final_rms", {tokens});

  plan.begin_scope();
  shared_.attention_forward = add_bytes("attention_forward", attention.forward);
  plan.end_scope();
  plan.begin_scope();
  shared_.ffn_hidden = add("ffn_hidden", {tokens, c.intermediate_size});
  plan.end_scope();
  if (options_.loss) {
    plan.begin_scope();
    shared_.loss = add_bytes(
        "loss", linear_cross_entropy_workspace_bytes(tokens, c.hidden_size, c.vocabulary_size,
                                                     options_.training, options_.trains_head));
    plan.end_scope();
  }
  if (options_.training) {
    shared_.dstream = add("dstream", {tokens, c.hidden_size});
    int64_t norm_bytes = rms_norm_backward_workspace_bytes(tokens, c.hidden_size);
    if (c.qk_norm) {
      norm_bytes =
          std::max(norm_bytes, rms_norm_backward_workspace_bytes(tokens * c.heads, c.head_dim));
    }
    shared_.norm_backward = add_bytes("norm_backward", norm_bytes);
    if (options_.lowest_layer < c.layers) {
      plan_layer_backward(adapters, attention.backward, plan);
    }
  }
}

// What the backward pass of a layer needs.
void LlamaActivations::plan_layer_backward(const LlamaAdapters& adapters, int64_t attention_bytes,
                                           MemoryPlan& plan) {
  const ModelConfig& c = config_;
  const int64_t tokens = options_.max_tokens;
  const auto add = [&](std::string_view name, std::initializer_list<int64_t> shape) {
    return plan.add(std::string(name), MemoryKind::workspace, DType::f32, shape);
  };
  int64_t ranks = 0;
  for (size_t g = 0; g < kLlamaGroups; ++g) {
    ranks = std::max(ranks, group_ranks(adapters, static_cast<LlamaGroup>(g)));
  }
  if (ranks > 0) {
    shared_.dlora_hidden = add("dlora_hidden", {tokens, ranks});
  }
  if (!adapters.empty() && adapters.options().dora) {
    shared_.dora_products = add("dora_products", {tokens, widest_scaled_group(c, adapters)});
  }
  plan.begin_scope();
  shared_.backward_ffn_hidden = add("ffn_hidden", {tokens, c.intermediate_size});
  shared_.dffn_hidden = add("dffn_hidden", {tokens, c.intermediate_size});
  plan.end_scope();
  plan.begin_scope();
  shared_.dattended = add("dattended", {tokens, c.heads * c.head_dim});
  shared_.dqkv = add("dqkv", {tokens, (c.heads + 2 * c.kv_heads) * c.head_dim});
  shared_.attention_backward =
      plan.add("attention_backward", MemoryKind::workspace, DType::u8, {attention_bytes});
  plan.end_scope();
}

std::span<std::byte> LlamaActivations::bytes(MemoryPlan::Id id) const {
  if (id == kAbsent) {
    return {};
  }
  const TensorView view = (*arena_)[id];
  return {static_cast<std::byte*>(view.data), static_cast<size_t>(view.bytes())};
}

std::array<TensorView, 3> LlamaActivations::split_qkv(MemoryPlan::Id id, int64_t tokens) const {
  const int64_t q_size = config_.heads * config_.head_dim;
  const int64_t kv_size = config_.kv_heads * config_.head_dim;
  const TensorView all = (*arena_)[id];
  if (!config_.qk_norm) {
    const TensorView rows = all.slice(0, 0, tokens);
    return {rows.slice(1, 0, q_size), rows.slice(1, q_size, kv_size),
            rows.slice(1, q_size + kv_size, kv_size)};
  }
  // QK norm takes heads as rows of one stride, so q, k and v each stand alone.
  const TensorView flat = all.reshape({all.size()});
  return {flat.slice(0, 0, tokens * q_size).reshape({tokens, q_size}),
          flat.slice(0, tokens * q_size, tokens * kv_size).reshape({tokens, kv_size}),
          flat.slice(0, tokens * (q_size + kv_size), tokens * kv_size).reshape({tokens, kv_size})};
}

LlamaLayerActivations LlamaActivations::layer(int64_t index, int64_t tokens, bool save) const {
  const ModelConfig& c = config_;
  const int64_t first = config_.layers - static_cast<int64_t>(layers_.size());
  const LayerIds& ids =
      layers_[save ? static_cast<size_t>(std::max(index - first, int64_t{0})) : 0];
  const auto rows = [&](MemoryPlan::Id id) { return (*arena_)[id].slice(0, 0, tokens); };
  LlamaLayerActivations a;
  a.input = rows(ids.input);
  a.attention_rms = rows(ids.attention_rms);
  const auto [q, k, v] = split_qkv(ids.qkv, tokens);
  a.q = a.q_raw = q;
  a.k = a.k_raw = k;
  a.v = v;
  if (c.qk_norm) {
    const int64_t q_size = c.heads * c.head_dim;
    const int64_t kv_size = c.kv_heads * c.head_dim;
    const TensorView raw = (*arena_)[ids.qk_raw];
    const TensorView flat = raw.reshape({raw.size()});
    a.q_raw = flat.slice(0, 0, tokens * q_size).reshape({tokens, q_size});
    a.k_raw = flat.slice(0, tokens * q_size, tokens * kv_size).reshape({tokens, kv_size});
    const TensorView rms = (*arena_)[ids.qk_rms];
    const TensorView flat_rms = rms.reshape({rms.size()});
    a.q_rms = flat_rms.slice(0, 0, tokens * c.heads);
    a.k_rms = flat_rms.slice(0, tokens * c.heads, tokens * c.kv_heads);
  }
  a.attended = rows(ids.attended);
  if (ids.lse != kAbsent) {
    a.lse = (*arena_)[ids.lse].slice(1, 0, tokens);
  }
  if (ids.ffn_hidden != kAbsent) {
    a.attention_normed = rows(ids.attention_normed);
    a.ffn_normed = rows(ids.ffn_normed);
    a.ffn_hidden = rows(ids.ffn_hidden);
  }
  a.middle = rows(ids.middle);
  a.ffn_rms = rows(ids.ffn_rms);
  const TensorView gate_up = rows(ids.gate_up);
  a.gate = gate_up.slice(1, 0, c.intermediate_size);
  a.up = gate_up.slice(1, c.intermediate_size, c.intermediate_size);
  for (size_t g = 0; g < kLlamaGroups; ++g) {
    if (ids.lora_hidden[g] != kAbsent) {
      a.lora_hidden[g] = rows(ids.lora_hidden[g]);
    }
  }
  return a;
}

LlamaWorkspace LlamaActivations::workspace(int64_t tokens) const {
  const auto rows = [&](MemoryPlan::Id id) {
    return id == kAbsent ? TensorView() : (*arena_)[id].slice(0, 0, tokens);
  };
  LlamaWorkspace w;
  w.normed = rows(shared_.normed);
  w.branch = rows(shared_.branch);
  w.ffn_hidden = rows(shared_.ffn_hidden);
  w.attention_forward = bytes(shared_.attention_forward);
  w.final_input = rows(shared_.final_input);
  w.final_rms = rows(shared_.final_rms);
  w.loss = bytes(shared_.loss);
  if (options_.training) {
    w.dstream = rows(shared_.dstream);
    w.backward_ffn_hidden = rows(shared_.backward_ffn_hidden);
    w.dffn_hidden = rows(shared_.dffn_hidden);
    w.dattended = rows(shared_.dattended);
    if (shared_.dqkv != kAbsent) {
      const auto [dq, dk, dv] = split_qkv(shared_.dqkv, tokens);
      w.dq = dq;
      w.dk = dk;
      w.dv = dv;
    }
    w.dlora_hidden = rows(shared_.dlora_hidden);
    w.dora_products = rows(shared_.dora_products);
    w.attention_backward = bytes(shared_.attention_backward);
    w.norm_backward = bytes(shared_.norm_backward);
  }
  return w;
}

}  // namespace flashloom
