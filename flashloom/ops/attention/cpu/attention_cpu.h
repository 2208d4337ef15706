#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/patterns/tile_runs.h"

namespace flashloom {

/// What the CPU kernels do not cover, in words; "" if they cover the call. Expects calls that
/// validation has accepted, as everything here.
std::string attention_forward_cpu_refusal(const AttentionOutputs& outputs,
                                          const AttentionInputs& inputs,
                                          const AttentionOptions& options);
std::string attention_backward_cpu_refusal(const AttentionGradients& gradients,
                                           const AttentionInputs& inputs,
                                           const AttentionSaved& saved,
                                           const AttentionOptions& options);

int64_t attention_forward_cpu_bytes(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                    const AttentionOptions& options);
int64_t attention_backward_cpu_bytes(const AttentionGradients& gradients,
                                     const AttentionInputs& inputs, const AttentionSaved& saved,
                                     const AttentionOptions& options);

/// The tiles that the forward kernel walks for a call, for tools that show them. Decoding walks no
/// tiles: all queries of a sequence by the keys that it works on together.
TileShape attention_forward_cpu_tile(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                     const AttentionOptions& options);

void attention_forward_cpu(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                           std::span<std::byte> workspace, const AttentionOptions& options);
void attention_backward_cpu(const AttentionGradients& gradients, const AttentionInputs& inputs,
                            const AttentionSaved& saved, std::span<std::byte> workspace,
                            const AttentionOptions& options);

}  // namespace flashloom
