#include "flashloom/text/token_documents.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/error.h"

namespace flashloom {

void TokenDocuments::add(std::span<const int32_t> tokens, std::span<const uint8_t> loss) {
  if (tokens.empty() || tokens.size() != loss.size()) {
    throw InvalidArgument("TokenDocuments", "loss", "one flag for each of one or more tokens",
                          fmt::format("{} tokens, {} flags", tokens.size(), loss.size()));
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  loss_.insert(loss_.end(), loss.begin(), loss.end());
  offsets_.push_back(static_cast<int64_t>(tokens_.size()));
  for (size_t i = 1; i < loss.size(); ++i) {
    loss_tokens_ += loss[i] != 0 ? 1 : 0;
  }
}

int64_t TokenDocuments::longest() const {
  int64_t length = 0;
  for (int64_t i = 0; i < size(); ++i) {
    length = std::max(length, this->length(i));
  }
  return length;
}

std::vector<int64_t> TokenDocuments::lengths() const {
  std::vector<int64_t> lengths(static_cast<size_t>(size()));
  for (size_t i = 0; i < lengths.size(); ++i) {
    lengths[i] = offsets_[i + 1] - offsets_[i];
  }
  return lengths;
}

TokenDocument TokenDocuments::operator[](int64_t index) const {
  const auto first = static_cast<size_t>(offsets_[static_cast<size_t>(index)]);
  const auto count = static_cast<size_t>(length(index));
  return {.tokens = std::span(tokens_).subspan(first, count),
          .loss = std::span(loss_).subspan(first, count)};
}

}  // namespace flashloom
