#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flashloom/text/document_group.h"
#include "flashloom/text/spilled_bytes.h"

namespace flashloom {

/// One document as the training loop sees it.
struct TokenDocument {
  std::span<const int32_t> tokens;
  /// Same length; 1 where the token bears loss when it is predicted from those before it.
  std::span<const uint8_t> loss;
};

/// Documents of a data set, tokenized, end to end in two arrays, which may be larger than memory.
class TokenDocuments {
 public:
  /// All in memory.
  TokenDocuments() = default;
  /// Beyond `memory_bytes`, in a temporary file in `directory`: 5 bytes a token.
  TokenDocuments(const std::string& directory, int64_t memory_bytes);

  /// Documents of these lengths that lie end to end in somebody else's arrays, which `owner` keeps
  /// alive: a mapped file. Nothing can be added. Throws InvalidArgument unless lengths and groups
  /// (count and weight; `first` is set here) cover all of the tokens and documents.
  static TokenDocuments borrowed(std::span<const int32_t> tokens, std::span<const uint8_t> loss,
                                 std::span<const int64_t> lengths,
                                 std::span<const DocumentGroup> groups,
                                 std::shared_ptr<const void> owner);

  /// Documents that are added from now on are drawn `weight` times an epoch. Throws InvalidArgument
  /// unless it is finite and above 0.
  void begin_group(double weight);

  /// Throws InvalidArgument unless `tokens` and `loss` are equally long and not empty, and for
  /// borrowed documents.
  void add(std::span<const int32_t> tokens, std::span<const uint8_t> loss);

  int64_t size() const { return static_cast<int64_t>(offsets_.size()) - 1; }

  int64_t length(int64_t index) const {
    const auto i = static_cast<size_t>(index);
    return offsets_[i + 1] - offsets_[i];
  }

  /// Tokens of the longest document; 0 without one.
  int64_t longest() const;

  /// Tokens of each document.
  std::vector<int64_t> lengths() const;

  TokenDocument operator[](int64_t index) const;

  /// All documents, those without begin_group() with weight 1.
  const std::vector<DocumentGroup>& groups() const { return groups_; }

  int64_t total_tokens() const { return offsets_.back(); }

  /// Positions that training predicts and scores: loss-bearing tokens without each first one.
  int64_t total_loss_tokens() const { return loss_tokens_; }

  /// Bytes that lie in the temporary file.
  int64_t spilled_bytes() const { return tokens_.spilled() + loss_.spilled(); }

 private:
  void begin_group_at(int64_t first, double weight);

  SpilledBytes tokens_;   // int32 each
  SpilledBytes loss_;     // uint8 each
  TokenDocument mapped_;  // all of them end to end, instead, if there is an owner
  std::shared_ptr<const void> owner_;
  std::vector<int64_t> offsets_ = {0};
  std::vector<DocumentGroup> groups_;
  int64_t loss_tokens_ = 0;
};

}  // namespace flashloom
