#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flashloom/models/llama/llama.h"

namespace flashloom {
namespace {

bool finite(const ConstTensorView& rows) {
  for (int64_t t = 0; t < rows.dim(0); ++t) {
    const float* row = rows.as<float>() + t * rows.stride(0);
    if (!std::all_of(row, row + rows.dim(1), [](float x) { return std::isfinite(x); })) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::string LlamaModel::first_non_finite(const LlamaBatch& batch) {
  check_batch(batch, /*labels=*/true);
  const int64_t tokens = batch.tokens.dim(0);
  forward(batch, /*save=*/true);
  for (int64_t n = 0; n < config_.layers; ++n) {
    const LlamaLayerActivations a = activations_.layer(n, tokens, /*save=*/true);
    if (!finite(a.input)) {
      return n == 0 ? "the embedding" : fmt::format("layer {}: the feed-forward's output", n - 1);
    }
    if (!finite(a.q) || !finite(a.k) || !finite(a.v)) {
      return fmt::format("layer {}: q, k or v", n);
    }
    if (!finite(a.attended)) {
      return fmt::format("layer {}: attention", n);
    }
    if (!finite(a.middle)) {
      return fmt::format("layer {}: attention's output projection", n);
    }
    if (!finite(a.gate) || !finite(a.up)) {
      return fmt::format("layer {}: the feed-forward's gate or up", n);
    }
  }
  if (!finite(activations_.workspace(tokens).final_input)) {
    return fmt::format("layer {}: the feed-forward's output", config_.layers - 1);
  }
  return std::isfinite(evaluate(batch)) ? "" : "the final norm or the loss";
}

}  // namespace flashloom
