#include "flashloom/text/packed_batches.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/error.h"

namespace flashloom {

void fill_batch(PackedBatch& out, const TokenDocuments& documents,
                std::span<const int32_t> indices) {
  out.tokens.clear();
  out.positions.clear();
  out.labels.clear();
  out.cu_seqlens.assign(1, 0);
  out.max_length = 0;
  out.loss_tokens = 0;
  for (const int32_t index : indices) {
    const TokenDocument document = documents[index];
    const auto length = static_cast<int32_t>(document.tokens.size());
    out.tokens.insert(out.tokens.end(), document.tokens.begin(), document.tokens.end());
    for (int32_t i = 0; i < length; ++i) {
      const auto target = static_cast<size_t>(i) + 1;
      const bool scored = i + 1 < length && document.loss[target] != 0;
      out.positions.push_back(i);
      out.labels.push_back(scored ? document.tokens[target] : kIgnoredLabel);
      out.loss_tokens += scored ? 1 : 0;
    }
    out.cu_seqlens.push_back(static_cast<int32_t>(out.tokens.size()));
    out.max_length = std::max(out.max_length, length);
  }
}

StepShape plan_steps(int64_t batch_tokens, int64_t sequence_length, int64_t max_bin_tokens) {
  if (batch_tokens < 1 || sequence_length < 1) {
    throw InvalidArgument("plan_steps", batch_tokens < 1 ? "batch_tokens" : "sequence_length",
                          "1 or more",
                          fmt::format("{}", batch_tokens < 1 ? batch_tokens : sequence_length));
  }
  if (max_bin_tokens < sequence_length) {
    throw InvalidArgument("plan_steps", "max_bin_tokens",
                          fmt::format("at least the sequence length, {}", sequence_length),
                          fmt::format("{}", max_bin_tokens));
  }
  const int64_t least = (batch_tokens - 1) / max_bin_tokens + 1;
  const int64_t even = (batch_tokens - 1) / least + 1;
  const int64_t capacity = std::max(sequence_length, even);
  return {.bin_capacity = capacity,
          .bins_per_step = std::max<int64_t>(1, (batch_tokens + capacity / 2) / capacity)};
}

PackedStream::PackedStream(const TokenDocuments& documents, const StepShape& shape,
                           PackingOptions options)
    : documents_(documents), shape_(shape), options_(options), lengths_(documents.lengths()) {
  if (documents.size() == 0) {
    throw InvalidArgument("PackedStream", "documents", "one or more", "none");
  }
  if (shape.bins_per_step < 1) {
    throw InvalidArgument("PackedStream", "bins_per_step", "1 or more",
                          fmt::format("{}", shape.bins_per_step));
  }
  options_.capacity = shape.bin_capacity;
  plan_ = pack_documents(lengths_, options_, 0, documents_.groups());
}

void PackedStream::next(std::vector<PackedBatch>& batches) {
  while (position_.bin == plan_.bins()) {  // small weights may leave an epoch empty
    seek({.epoch = position_.epoch + 1, .bin = 0});
  }
  const int64_t count = std::min(shape_.bins_per_step, plan_.bins() - position_.bin);
  batches.resize(static_cast<size_t>(count));
  for (PackedBatch& batch : batches) {
    fill_batch(batch, documents_, plan_.bin(position_.bin));
    ++position_.bin;
  }
}

void PackedStream::seek(const DataPosition& position) {
  PackingPlan plan = position.epoch == position_.epoch
                         ? plan_
                         : pack_documents(lengths_, options_, position.epoch, documents_.groups());
  if (position.epoch < 0 || position.bin < 0 || position.bin > plan.bins()) {
    throw InvalidArgument("PackedStream", "position",
                          fmt::format("a bin from 0 to {}", plan.bins()),
                          fmt::format("epoch {}, bin {}", position.epoch, position.bin));
  }
  plan_ = std::move(plan);
  position_ = position;
}

}  // namespace flashloom
