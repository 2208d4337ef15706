#include "flashloom/models/llama/llama_projection.h"

#include <algorithm>

#include "flashloom/ops/gemv/gemv.h"
#include "flashloom/ops/linear/linear.h"
#include "flashloom/ops/lora_linear/lora_linear.h"

namespace flashloom {
namespace {

constexpr size_t kLargestGroup = 3;

struct Projections {
  std::array<LoraProjection, kLargestGroup> items;
  size_t count = 0;
  int64_t ranks = 0;
  int64_t scaled_outputs = 0;  // of linears with a magnitude
  bool blocks = false;

  std::span<const LoraProjection> span() const { return {items.data(), count}; }
};

/// RoPE adds the biases of q, k and v where it follows the projection directly.
bool adds_bias(const LlamaLayer& layer, LlamaGroup group) {
  return group != LlamaGroup::qkv || layer.config.qk_norm;
}

Projections projections_of(const LlamaLayer& layer, LlamaGroup group) {
  Projections result;
  const auto [first, end] = llama_group_range(group);
  // The analyzer does not see that no group is larger than the largest.
  for (size_t i = first; i < std::min(end, first + kLargestGroup); ++i) {
    LoraProjection& projection = result.items[result.count++];
    projection.weight = layer.weights.linear[i];
    projection.blocks = layer.weights.blocks[i];
    result.blocks = result.blocks || projection.blocks;
    if (adds_bias(layer, group)) {
      projection.bias = layer.weights.bias[i];
    }
    const LlamaAdapter& adapter = layer.adapters.value[i];
    if (adapter.a) {
      projection.a = adapter.a;
      projection.b = adapter.b;
      projection.scale = layer.adapter_scale;
      result.ranks += adapter.a.dim(0);
      if (adapter.magnitude) {
        projection.magnitude = adapter.magnitude;
        projection.row_norms = layer.adapters.row_norms[i];
        result.scaled_outputs += adapter.magnitude.dim(0);
      }
    }
  }
  return result;
}

/// One row: each weight is read once, at the speed of memory.
void forward_row(std::span<const TensorView> y, TensorView lora_hidden, ConstTensorView x,
                 std::span<const LoraProjection> projections) {
  const ConstTensorView input = x.select(0, 0);
  int64_t rank = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    const LoraProjection& p = projections[i];
    const TensorView output = y[i].select(0, 0);
    gemv(output, p.weight, input, p.bias);
    if (p.a) {
      const TensorView hidden = lora_hidden.select(0, 0).slice(0, rank, p.a.dim(0));
      gemv(hidden, p.a, input);
      gemv(output, p.b, hidden, {}, {.alpha = p.scale, .beta = 1});
      rank += p.a.dim(0);
    }
  }
}

}  // namespace

bool LlamaLayer::group_has_adapter(LlamaGroup group) const {
  const LlamaGroupRange range = llama_group_range(group);
  for (size_t i = range.first; i < range.end; ++i) {
    if (adapters.value[i].a) {
      return true;
    }
  }
  return false;
}

void llama_projection_forward(std::span<const TensorView> y, TensorView lora_hidden,
                              ConstTensorView x, const LlamaLayer& layer, LlamaGroup group) {
  const Projections projections = projections_of(layer, group);
  if (x.dim(0) == 1 && !projections.blocks && projections.scaled_outputs == 0) {
    forward_row(y, lora_hidden, x, projections.span());
  } else {
    // Where this layer has no adapter, the buffer is another layer's.
    lora_linear_forward(y, projections.ranks > 0 ? lora_hidden : TensorView(), x,
                        projections.span());
  }
}

bool llama_projection_reads_input(const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                                  LlamaGroup group) {
  const auto [first, end] = llama_group_range(group);
  for (size_t i = first; i < end; ++i) {
    if (gradients.weights != nullptr && gradients.weights->linear[i]) {
      return true;
    }
  }
  return gradients.adapters != nullptr && layer.group_has_adapter(group);
}

bool llama_projection_trains(const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                             LlamaGroup group) {
  const auto [first, end] = llama_group_range(group);
  for (size_t i = first; i < end; ++i) {
    if (gradients.weights != nullptr && gradients.weights->bias[i]) {
      return true;
    }
  }
  return llama_projection_reads_input(layer, gradients, group);
}

void llama_projection_backward(TensorView dx, std::span<const ConstTensorView> dy,
                               ConstTensorView x, ConstTensorView lora_hidden,
                               TensorView dlora_hidden, TensorView dora_products,
                               const LlamaLayer& layer, const LlamaLayerGradients& gradients,
                               LlamaGroup group) {
  const size_t first = llama_group_range(group).first;
  // Where all is frozen, dx is one sum of products.
  if (gradients.weights != nullptr && llama_projection_trains(layer, gradients, group)) {
    for (size_t i = 0; i < dy.size(); ++i) {
      const TensorView dbias =
          adds_bias(layer, group) ? gradients.weights->bias[first + i] : TensorView();
      linear_backward(dx, gradients.weights->linear[first + i], dbias, dy[i], x,
                      layer.weights.linear[first + i], {.accumulate_input = i > 0});
    }
    return;
  }
  const Projections projections = projections_of(layer, group);
  std::array<LoraGradients, kLargestGroup> adapter_gradients;
  TensorView hidden_gradient;
  TensorView products;
  const auto narrowed = [&](const TensorView& buffer, int64_t columns) {
    const int64_t tokens = dy[0].dim(0);
    return buffer.reshape({buffer.size()}).slice(0, 0, tokens * columns).reshape({tokens, columns});
  };
  if (projections.scaled_outputs > 0) {
    products = narrowed(dora_products, projections.scaled_outputs);
  }
  if (projections.ranks > 0) {
    hidden_gradient = narrowed(dlora_hidden, projections.ranks);
    for (size_t i = 0; i < projections.count; ++i) {
      const LlamaAdapter& gradient = gradients.adapters->gradient[first + i];
      adapter_gradients[i] = {gradient.a, gradient.b, gradient.magnitude};
    }
  }
  lora_linear_backward(dx, {adapter_gradients.data(), projections.count}, hidden_gradient, dy, x,
                       projections.ranks > 0 ? lora_hidden : ConstTensorView(), projections.span(),
                       /*accumulate_input=*/false, products);
}

}  // namespace flashloom
