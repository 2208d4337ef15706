#include "flashloom/train/evaluation.h"

#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/text/packing.h"

namespace flashloom {

double EvaluationResult::perplexity() const {
  return std::exp(loss);
}

LlamaBatch batch_view(const PackedBatch& batch) {
  const auto view = [](const std::vector<int32_t>& values) {
    return ConstTensorView(values.data(), {static_cast<int64_t>(values.size())});
  };
  return {.tokens = view(batch.tokens),
          .positions = view(batch.positions),
          .labels = view(batch.labels),
          .cu_seqlens = view(batch.cu_seqlens),
          .max_length = batch.max_length};
}

EvaluationResult evaluate_documents(LlamaModel& model, const TokenDocuments& documents,
                                    int64_t bin_tokens) {
  check(documents.total_loss_tokens() > 0, "evaluate_documents", "documents",
        "at least one loss-bearing token", "none");
  const PackingPlan plan =
      pack_documents(documents.lengths(), {.capacity = bin_tokens, .shuffle = false}, /*epoch=*/0);
  EvaluationResult result;
  PackedBatch batch;
  for (int64_t i = 0; i < plan.bins(); ++i) {
    fill_batch(batch, documents, plan.bin(i));
    if (batch.loss_tokens > 0) {
      result.loss += model.evaluate(batch_view(batch));
    }
    result.tokens += batch.loss_tokens;
    result.all_tokens += static_cast<int64_t>(batch.tokens.size());
  }
  result.loss /= static_cast<double>(result.tokens);
  return result;
}

}  // namespace flashloom
