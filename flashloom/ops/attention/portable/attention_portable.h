#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "flashloom/ops/attention/attention.h"

// The portable CUDA backend: mma.sync and cp.async, for compute capability 8.0 and later. It covers
// the contract but for gates, 8-bit and f64 storage, and rows wider than 256. Arguments have been
// validated. Results are bitwise the same every time.

namespace flashloom::portable {

/// What of a call the backend does not cover, in words; "" if it covers all of it.
std::string attention_forward_refusal(const AttentionOutputs& outputs,
                                      const AttentionInputs& inputs,
                                      const AttentionOptions& options);
std::string attention_backward_refusal(const AttentionGradients& gradients,
                                       const AttentionInputs& inputs, const AttentionSaved& saved,
                                       const AttentionOptions& options);

int64_t attention_backward_bytes(const AttentionInputs& inputs, const AttentionSaved& saved,
                                 const AttentionOptions& options);

void attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       const AttentionOptions& options, Stream stream);
void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream);

void attention_merge(const TensorView& out, const TensorView& lse, const ConstTensorView& parts,
                     const ConstTensorView& part_lse, const ConstTensorView& sinks, Stream stream);

/// Sets the status word, if the call has one, to what is wrong with its index data on the device.
void attention_report_faults(const AttentionInputs& inputs, const AttentionOptions& options,
                             Stream stream);
/// Waits for the stream and returns the status word.
int32_t attention_status(const TensorView& status, Stream stream);

/// True on devices of compute capability 9.0, and where there is no device to ask.
bool is_hopper(int device);

}  // namespace flashloom::portable
