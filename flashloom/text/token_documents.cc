#include "flashloom/text/token_documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flashloom/core/error.h"

namespace flashloom {

// A token takes four bytes and its loss mark one.
TokenDocuments::TokenDocuments(const std::string& directory, int64_t memory_bytes)
    : tokens_(directory, memory_bytes / 5 * 4), loss_(directory, memory_bytes / 5) {}

void TokenDocuments::begin_group(double weight) {
  if (!std::isfinite(weight) || weight <= 0) {
    throw InvalidArgument("TokenDocuments", "weight", "a number above 0",
                          fmt::format("{}", weight));
  }
  groups_.push_back({.first = size(), .count = 0, .weight = weight});
}

void TokenDocuments::add(std::span<const int32_t> tokens, std::span<const uint8_t> loss) {
  if (tokens.empty() || tokens.size() != loss.size()) {
    throw InvalidArgument("TokenDocuments", "loss", "one flag for each of one or more tokens",
                          fmt::format("{} tokens, {} flags", tokens.size(), loss.size()));
  }
  if (groups_.empty()) {
    begin_group(1);
  }
  tokens_.append(std::as_bytes(tokens));
  loss_.append(std::as_bytes(loss));
  offsets_.push_back(offsets_.back() + static_cast<int64_t>(tokens.size()));
  ++groups_.back().count;
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
  const int64_t first = offsets_[static_cast<size_t>(index)];
  const int64_t count = length(index);
  constexpr int64_t kTokenBytes = sizeof(int32_t);
  const auto tokens = tokens_.part(first * kTokenBytes, count * kTokenBytes);
  const auto loss = loss_.part(first, count);
  return {.tokens = {reinterpret_cast<const int32_t*>(tokens.data()), static_cast<size_t>(count)},
          .loss = {reinterpret_cast<const uint8_t*>(loss.data()), static_cast<size_t>(count)}};
}

}  // namespace flashloom
