#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/models/llama/llama.h"
#include "flashloom/text/packed_batches.h"
#include "flashloom/text/token_documents.h"

namespace flashloom {

struct EvaluationResult {
  double loss = 0;     // mean over loss-bearing tokens, nats
  int64_t tokens = 0;  // loss-bearing
  int64_t all_tokens = 0;

  double perplexity() const;
};

/// A model's view of a packed batch; borrows its vectors.
LlamaBatch batch_view(const PackedBatch& batch);

/// Mean loss over all documents, packed into bins of `bin_tokens` in their own order. The result
/// does not depend on the packing beyond rounding. Throws InvalidArgument if nothing bears loss.
EvaluationResult evaluate_documents(LlamaModel& model, const TokenDocuments& documents,
                                    int64_t bin_tokens);

/// The sum of the losses (nats) of each document's loss-bearing tokens, in the documents' order:
/// minus the logarithm of their probability. Packed as evaluate_documents packs; 0 for a document
/// without loss.
std::vector<double> document_losses(LlamaModel& model, const TokenDocuments& documents,
                                    int64_t bin_tokens);

}  // namespace flashloom
