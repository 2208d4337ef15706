#include "flashloom/train/evaluation.h"

#include <cmath>
#include <numeric>
#include <span>

#include "flashloom/core/check.h"
#include "flashloom/core/function_ref.h"
#include "flashloom/text/packing.h"

namespace flashloom {
namespace {

// Bins of documents in their own order, those without loss left out.
void for_each_bin(
    const TokenDocuments& documents, int64_t bin_tokens,
    FunctionRef<void(std::span<const int32_t> indices, const PackedBatch& batch)> visit) {
  const PackingPlan plan =
      pack_documents(documents.lengths(), {.capacity = bin_tokens, .shuffle = false}, /*epoch=*/0);
  PackedBatch batch;
  for (int64_t i = 0; i < plan.bins(); ++i) {
    fill_batch(batch, documents, plan.bin(i));
    if (batch.loss_tokens > 0) {
      visit(plan.bin(i), batch);
    }
  }
}

}  // namespace

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
                                    int64_t bin_tokens, RankOf place,
                                    const std::function<void(std::span<double>)>& sum_ranks) {
  check(documents.total_loss_tokens() > 0, "evaluate_documents", "documents",
        "at least one loss-bearing token", "none");
  EvaluationResult result = {.tokens = documents.total_loss_tokens(),
                             .all_tokens = documents.total_tokens()};
  std::vector<double> losses;
  for_each_bin(documents, bin_tokens, [&](std::span<const int32_t>, const PackedBatch& batch) {
    const bool mine = place.takes(static_cast<int64_t>(losses.size()));
    losses.push_back(mine ? model.evaluate(batch_view(batch)) : 0);
  });
  if (sum_ranks) {
    sum_ranks(losses);
  }
  result.loss = std::accumulate(losses.begin(), losses.end(), 0.0);
  result.loss /= static_cast<double>(result.tokens);
  return result;
}

std::vector<double> document_losses(LlamaModel& model, const TokenDocuments& documents,
                                    int64_t bin_tokens) {
  std::vector<double> losses(static_cast<size_t>(documents.size()));
  for_each_bin(
      documents, bin_tokens, [&](std::span<const int32_t> indices, const PackedBatch& batch) {
        model.evaluate(batch_view(batch));
        const float* tokens = model.token_losses().as<float>();
        for (size_t i = 0; i < indices.size(); ++i) {
          losses[static_cast<size_t>(indices[i])] =
              std::accumulate(tokens + batch.cu_seqlens[i], tokens + batch.cu_seqlens[i + 1], 0.0);
        }
      });
  return losses;
}

}  // namespace flashloom
