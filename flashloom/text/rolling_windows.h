#pragma once

#include <cstdint>
#include <span>

#include "flashloom/text/token_documents.h"

namespace flashloom {

/// Adds a text of any length as windows in which every token of it is predicted once: the first
/// `window` tokens behind `prefix`, then `stride` at a time, each time from the `window` tokens
/// before the last of them. stride = window reads each token once; a smaller one gives every
/// prediction at least window - stride + 1 tokens of context and costs window / stride times as
/// much. These are the rolling windows of lm-evaluation-harness (context_len = window - stride + 1)
/// and, from the second on, those of the "perplexity of fixed-length models" guide of transformers.
/// `prefix`: what stands before a text, the BOS token of most models. A window has window + 1
/// tokens at most. Throws InvalidArgument unless 1 <= stride <= window and there is a token.
void add_rolling_windows(TokenDocuments& documents, std::span<const int32_t> tokens, int32_t prefix,
                         int64_t window, int64_t stride);

}  // namespace flashloom
