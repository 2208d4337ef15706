#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "flashloom/ops/attention/attention.h"

// Decoding on a GPU: a few queries a sequence against a long cache. The time is that of reading the
// cache once; docs/kernels/attention.md shows the schedule. Arguments have been validated.

namespace flashloom::decode {

/// More queries a sequence have enough arithmetic for the tiled kernels.
inline constexpr int64_t kMaxQueries = 16;

/// What of a call the kernel does not cover, in words; "" if it covers all of it.
std::string attention_decode_refusal(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                     const AttentionOptions& options);

int64_t attention_decode_bytes(const AttentionInputs& inputs, const AttentionOptions& options);

void attention_decode(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                      std::span<std::byte> workspace, const AttentionOptions& options,
                      Stream stream);

}  // namespace flashloom::decode
