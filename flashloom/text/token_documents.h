#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace flashloom {

/// One document as the training loop sees it.
struct TokenDocument {
  std::span<const int32_t> tokens;
  /// Same length; 1 where the token bears loss when it is predicted from those before it.
  std::span<const uint8_t> loss;
};

/// Documents of a data set, tokenized, end to end in two arrays.
class TokenDocuments {
 public:
  /// Throws InvalidArgument unless `tokens` and `loss` are equally long and not empty.
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

  int64_t total_tokens() const { return offsets_.back(); }

  /// Positions that training predicts and scores: loss-bearing tokens without each first one.
  int64_t total_loss_tokens() const { return loss_tokens_; }

 private:
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> loss_;
  std::vector<int64_t> offsets_ = {0};
  int64_t loss_tokens_ = 0;
};

}  // namespace flashloom
