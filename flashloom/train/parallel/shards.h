#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace flashloom {

/// One of several ranks that train together.
struct RankOf {
  int rank = 0;
  int ranks = 1;

  bool alone() const { return ranks == 1; }

  /// Whether this rank takes the i-th of a step's micro-batches or of an evaluation's bins: in
  /// turn.
  bool takes(int64_t i) const { return i % ranks == rank; }
};

/// Elements first … first + count - 1 of a flattened tensor.
struct TensorPart {
  int64_t first = 0;
  int64_t count = 0;
};

/// ZeRO-1: the trained numbers of a model, tensor after tensor, cut into a contiguous range a rank
/// of nearly the same size. A rank keeps and updates the optimizer's state of its range alone.
/// Source: Rajbhandari et al. 2020.
class Shards {
 public:
  /// Ranges begin at multiples of `block` within their tensor, so that the blocks of quantised
  /// moments stay whole.
  Shards(std::span<const int64_t> tensor_sizes, int ranks, int64_t block);

  int ranks() const { return static_cast<int>(parts_.size()); }

  /// What a rank has of each tensor, in the tensors' order; count 0 for those it has nothing of.
  std::span<const TensorPart> of(int rank) const { return parts_[static_cast<size_t>(rank)]; }

  /// Elements of a rank's range.
  int64_t elements(int rank) const;

 private:
  std::vector<std::vector<TensorPart>> parts_;  // [rank][tensor]
};

}  // namespace flashloom
