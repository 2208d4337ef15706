#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/core/block_format.h"
#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// One projection of a group that reads the same x (q, k, v; or gate, up; or one alone), with an
/// optional low-rank adapter: y = x W^T + bias + scale (x A^T) B^T, or, with a magnitude (DoRA),
/// y = (magnitude / row_norms) (x W^T + scale (x A^T) B^T) + bias.
struct LoraProjection {
  ConstTensorView weight;          // (N, K) frozen, f32 or bf16
  ConstTensorView bias = {};       // optional (N)
  ConstTensorView a = {};          // optional (R, K): no adapter if absent
  ConstTensorView b = {};          // (N, R)
  float scale = 1;                 // alpha / R
  BlockMatrix blocks = {};         // instead of `weight` (QLoRA): decoded inside the products
  ConstTensorView magnitude = {};  // optional (N), of an adapter
  ConstTensorView row_norms = {};  // (N) beside it: dora_row_norms(). Rows of norm 0 give 0.

  int64_t outputs() const { return blocks ? blocks.rows : weight.dim(0); }

  int64_t inputs() const { return blocks ? blocks.columns : weight.dim(1); }
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
/// Source:  Hu et al. 2021; Dettmers et al. 2023 (QLoRA), Liu et al. 2024 (DoRA).
void lora_linear_forward(std::span<const TensorView> y, TensorView hidden, ConstTensorView x,
                         std::span<const LoraProjection> projections, Stream stream = {});

/// Passes over x that the A of a group take: one if they are rows of one tensor, none without
/// adapters.
int64_t lora_linear_adapter_passes(std::span<const LoraProjection> projections);

struct LoraGradients {
  TensorView da;               // (R, K) f32, added to
  TensorView db;               // (N, R) f32, added to
  TensorView dmagnitude = {};  // (N) f32, added to, where there is a magnitude
};

/// dB += scale dy^T h; dh = scale dy B; dA += dh^T x; dx = dy W + dh A, summed over the group.
/// With a magnitude, dmagnitude += column sums of dy (x W^T + scale h B^T) / row_norms, and the
/// rest is with (magnitude / row_norms) dy for dy: row_norms count as constants, as in the paper
/// (section 4.3). The product in the bracket is done again, into `scratch` (T, sum of N of the
/// projections with a magnitude), which holds garbage.
///
/// dx (T, K) may be absent (the first layer's input needs none). `dhidden` (T, sum of ranks) is
/// scratch. With `accumulate_input`, dx is added to. `gradients` holds one entry a projection,
/// empty where it has no adapter. As with A, da that are rows of one tensor are one product. `x`
/// may be absent if no projection has an adapter.
void lora_linear_backward(TensorView dx, std::span<const LoraGradients> gradients,
                          TensorView dhidden, std::span<const ConstTensorView> dy,
                          ConstTensorView x, ConstTensorView hidden,
                          std::span<const LoraProjection> projections,
                          bool accumulate_input = false, TensorView scratch = {},
                          Stream stream = {});

/// norms[n] = |W_n + scale (B A)_n|, the norm of a row of the adapted weight. `scratch` (any rows,
/// dora_scratch_columns(K)) with a row for each thread. The same bits for any number of threads.
void dora_row_norms(TensorView norms, const LoraProjection& projection, TensorView scratch,
                    Stream stream = {});

int64_t dora_scratch_columns(int64_t inputs);

/// The oracles: float64 plain loops. f32 or f64 tensors.
void lora_linear_forward_reference(std::span<const TensorView> y, TensorView hidden,
                                   ConstTensorView x, std::span<const LoraProjection> projections);
void lora_linear_backward_reference(TensorView dx, std::span<const LoraGradients> gradients,
                                    TensorView dhidden, std::span<const ConstTensorView> dy,
                                    ConstTensorView x, ConstTensorView hidden,
                                    std::span<const LoraProjection> projections,
                                    bool accumulate_input = false);
void dora_row_norms_reference(TensorView norms, const LoraProjection& projection);

}  // namespace flashloom
