#pragma once

#include "flashloom/ops/attention/attention.h"

namespace flashloom {

/// Everything of a call that can be checked from shapes, dtypes and options; throws
/// InvalidArgument.
void validate_attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                const AttentionOptions& options);
void validate_attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                                 const AttentionSaved& saved, const AttentionOptions& options);
void validate_attention_merge(const TensorView& out, const TensorView& lse,
                              const ConstTensorView& parts, const ConstTensorView& part_lse,
                              const ConstTensorView& sinks);

/// Index data that lies in the CPU's memory: lengths, pages, blocks, buckets, output rows. Does
/// nothing for a call on a GPU.
void validate_attention_index_data(std::string_view op, const AttentionInputs& inputs,
                                   const AttentionOptions& options);

}  // namespace flashloom
