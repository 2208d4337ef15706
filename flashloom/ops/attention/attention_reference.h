#pragma once

#include "flashloom/ops/attention/attention.h"

namespace flashloom {

/// The oracle: the whole contract in float64 plain loops, one row of scores at a time. Reads and
/// writes any storage, f64 too. Expects calls that validation has accepted.
///
/// Order of keys for a relative gate: ascending.
void attention_forward_reference(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                 const AttentionOptions& options = {});

/// Uses saved.lse and saved.out as they are, so that parts of a longer attention get their share of
/// the whole's gradient.
void attention_backward_reference(const AttentionGradients& gradients,
                                  const AttentionInputs& inputs, const AttentionSaved& saved,
                                  const AttentionOptions& options = {});

void attention_merge_reference(TensorView out, TensorView lse, ConstTensorView parts,
                               ConstTensorView part_lse, ConstTensorView sinks = {});

}  // namespace flashloom
