#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "flashloom/ops/attention/attention.h"

// The Hopper backend: bf16 and f16. Forward: head and value dimensions up to 256 in steps of 8,
// visibility by position, packed and padded sequences, block masks, softcap, ALiBi, sinks, dropout.
// What else is covered, and what not, the refusals say. Arguments have been validated.

namespace flashloom::sm90 {

/// Whether a forward call changes scores or probabilities, so that it takes a general kernel.
inline bool has_rule(const AttentionOptions& options) {
  return options.score.softcap != 0 || options.score.alibi_slopes || options.score.scale < 0 ||
         options.dropout.probability != 0 || options.positions.exclude_self;
}

/// What of a call the backend does not cover, in words; "" if it covers all of it.
std::string attention_forward_refusal(const AttentionOutputs& outputs,
                                      const AttentionInputs& inputs,
                                      const AttentionOptions& options);
std::string attention_backward_refusal(const AttentionGradients& gradients,
                                       const AttentionInputs& inputs, const AttentionSaved& saved,
                                       const AttentionOptions& options);

int64_t attention_forward_bytes(const AttentionInputs& inputs, const AttentionOptions& options);
int64_t attention_backward_bytes(const AttentionInputs& inputs, const AttentionSaved& saved,
                                 const AttentionOptions& options);

void attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       std::span<std::byte> workspace, const AttentionOptions& options,
                       Stream stream);
void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream);

}  // namespace flashloom::sm90
