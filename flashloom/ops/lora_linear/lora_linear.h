#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// One projection of a group that reads the same x (q, k, v; or gate, up; or one alone), with an
/// optional low-rank adapter: y = x W^T + bias + scale (x A^T) B^T.
struct LoraProjection {
  ConstTensorView weight;     // (N, K) frozen, f32 or bf16
  ConstTensorView bias = {};  // optional (N)
  ConstTensorView a = {};     // optional (R, K): no adapter if absent
  ConstTensorView b = {};     // (N, R)
  float scale = 1;            // alpha / R
};

/// All projections of the group at once. The A of all adapters are multiplied with x in one pass,
/// so x is read once for them; their products stand side by side in `hidden`.
///
/// Shapes:  y[i] (T, N_i), x (T, K), hidden (T, sum of ranks) is saved for the backward pass;
/// absent
///          if no projection has an adapter. f32, rows at any stride.
/// Layout:  A of neighbouring projections that are rows of one (sum of ranks, K) tensor are one
///          product; others take a product, and a pass over x, each.
/// Order:   the same bits for any number of threads.
/// Throws:  InvalidArgument, naming the projection.
/// Source:  Hu et al. 2021.
void lora_linear_forward(std::span<const TensorView> y, TensorView hidden, ConstTensorView x,
                         std::span<const LoraProjection> projections, Stream stream = {});

/// Passes over x that the A of a group take: one if they are rows of one tensor, none without
/// adapters.
int64_t lora_linear_adapter_passes(std::span<const LoraProjection> projections);

struct LoraGradients {
  TensorView da;  // (R, K) f32, added to
  TensorView db;  // (N, R) f32, added to
};

/// dB += scale dy^T h; dh = scale dy B; dA += dh^T x; dx = dy W + dh A, summed over the group.
///
/// dx (T, K) may be absent (the first layer's input needs none). `dhidden` (T, sum of ranks) is
/// scratch. With `accumulate_input`, dx is added to. `gradients` holds one entry a projection,
/// empty where it has no adapter. As with A, da that are rows of one tensor are one product. `x`
/// may be absent if no projection has an adapter.
void lora_linear_backward(TensorView dx, std::span<const LoraGradients> gradients,
                          TensorView dhidden, std::span<const ConstTensorView> dy,
                          ConstTensorView x, ConstTensorView hidden,
                          std::span<const LoraProjection> projections,
                          bool accumulate_input = false, Stream stream = {});

/// The oracles: float64 plain loops. f32 or f64 tensors.
void lora_linear_forward_reference(std::span<const TensorView> y, TensorView hidden,
                                   ConstTensorView x, std::span<const LoraProjection> projections);
void lora_linear_backward_reference(TensorView dx, std::span<const LoraGradients> gradients,
                                    TensorView dhidden, std::span<const ConstTensorView> dy,
                                    ConstTensorView x, ConstTensorView hidden,
                                    std::span<const LoraProjection> projections,
                                    bool accumulate_input = false);

}  // namespace flashloom
