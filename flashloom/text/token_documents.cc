#include "flashloom/text/token_documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "flashloom/core/error.h"

namespace flashloom {

// A token takes four bytes and its loss mark one.
TokenDocuments::TokenDocuments(const std::string& directory, int64_t memory_bytes)
    : tokens_(directory, memory_bytes / 5 * 4), loss_(directory, memory_bytes / 5) {}

TokenDocuments TokenDocuments::borrowed(std::span<const int32_t> tokens,
                                        std::span<const uint8_t> loss,
                                        std::span<const int64_t> lengths,
                                        std::span<const DocumentGroup> groups,
                                        std::shared_ptr<const void> owner) {
  constexpr const char* kName = "TokenDocuments";
  if (tokens.size() != loss.size()) {
    throw InvalidArgument(kName, "loss", fmt::format("{} flags", tokens.size()),
                          fmt::format("{}", loss.size()));
  }
  TokenDocuments documents;
  documents.mapped_ = {.tokens = tokens, .loss = loss};
  documents.owner_ = std::move(owner);
  documents.offsets_.reserve(lengths.size() + 1);
  const auto total = static_cast<int64_t>(tokens.size());
  for (const int64_t length : lengths) {
    const int64_t begin = documents.offsets_.back();
    if (length < 1 || length > total - begin) {
      throw InvalidArgument(
          kName, "lengths", fmt::format("1 to {} tokens", total - begin),
          fmt::format("{} in document {}", length, documents.offsets_.size() - 1));
    }
    documents.offsets_.push_back(begin + length);
    for (int64_t i = begin + 1; i < begin + length; ++i) {
      documents.loss_tokens_ += loss[static_cast<size_t>(i)] != 0 ? 1 : 0;
    }
  }
  if (documents.offsets_.back() != total) {
    throw InvalidArgument(kName, "lengths", fmt::format("{} tokens together", total),
                          fmt::format("{}", documents.offsets_.back()));
  }
  for (const DocumentGroup& group : groups) {
    documents.begin_group_at(documents.groups_.empty()
                                 ? 0
                                 : documents.groups_.back().first + documents.groups_.back().count,
                             group.weight);
    DocumentGroup& added = documents.groups_.back();
    if (group.count < 0 || group.count > documents.size() - added.first) {
      throw InvalidArgument(kName, "groups",
                            fmt::format("0 to {} documents", documents.size() - added.first),
                            fmt::format("{}", group.count));
    }
    added.count = group.count;
  }
  const int64_t grouped = documents.groups_.empty()
                              ? 0
                              : documents.groups_.back().first + documents.groups_.back().count;
  if (grouped != documents.size()) {
    throw InvalidArgument(kName, "groups", fmt::format("{} documents together", documents.size()),
                          fmt::format("{}", grouped));
  }
  return documents;
}

void TokenDocuments::begin_group(double weight) {
  begin_group_at(size(), weight);
}

void TokenDocuments::begin_group_at(int64_t first, double weight) {
  if (!std::isfinite(weight) || weight <= 0) {
    throw InvalidArgument("TokenDocuments", "weight", "a number above 0",
                          fmt::format("{}", weight));
  }
  groups_.push_back({.first = first, .count = 0, .weight = weight});
}

void TokenDocuments::add(std::span<const int32_t> tokens, std::span<const uint8_t> loss) {
  if (tokens.empty() || tokens.size() != loss.size()) {
    throw InvalidArgument("TokenDocuments", "loss", "one flag for each of one or more tokens",
                          fmt::format("{} tokens, {} flags", tokens.size(), loss.size()));
  }
  if (owner_) {
    throw InvalidArgument("TokenDocuments", "add", "documents of one's own", "borrowed ones");
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
  if (owner_) {
    return {
        .tokens = mapped_.tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
        .loss = mapped_.loss.subspan(static_cast<size_t>(first), static_cast<size_t>(count))};
  }
  constexpr int64_t kTokenBytes = sizeof(int32_t);
  const auto tokens = tokens_.part(first * kTokenBytes, count * kTokenBytes);
  const auto loss = loss_.part(first, count);
  return {.tokens = {reinterpret_cast<const int32_t*>(tokens.data()), static_cast<size_t>(count)},
          .loss = {reinterpret_cast<const uint8_t*>(loss.data()), static_cast<size_t>(count)}};
}

}  // namespace flashloom
