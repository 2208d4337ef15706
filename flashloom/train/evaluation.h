#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "flashloom/models/llama/llama.h"
#include "flashloom/text/packed_batches.h"
#include "flashloom/text/token_documents.h"
#include "flashloom/train/parallel/shards.h"

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
/// Several ranks take bins in turn, and `sum_ranks` adds their losses up, in place: the result is
/// that of one rank, bit for bit.
EvaluationResult evaluate_documents(LlamaModel& model, const TokenDocuments& documents,
                                    int64_t bin_tokens, RankOf place = {},
                                    const std::function<void(std::span<double>)>& sum_ranks = {});

/// The sum of the losses (nats) of each document's loss-bearing tokens, in the documents' order:
/// minus the logarithm of their probability. Packed as evaluate_documents packs; 0 for a document
/// without loss.
std::vector<double> document_losses(LlamaModel& model, const TokenDocuments& documents,
                                    int64_t bin_tokens);

}  // namespace flashloom
