#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flashloom/text/document_group.h"

namespace flashloom {

struct PackingOptions {
  /// Tokens a bin holds; no document may be longer.
  int64_t capacity = 0;
  /// Documents packed together. Within a window the order of lengths decides who meets whom, so a
  /// window should be small beside the data; 4096 fills 99.8 % of the capacity of a million
  /// documents, one window for all of them 99.99 % (packing_bench).
  int64_t window = 4096;
  uint64_t seed = 0;
  /// Evaluation: documents keep their order before packing, and bins theirs after it.
  bool shuffle = true;
};

/// Which documents share a bin, for one epoch.
struct PackingPlan {
  std::vector<int32_t> documents;      // all bins' documents, end to end
  std::vector<int64_t> offsets = {0};  // (bins + 1)

  int64_t bins() const { return static_cast<int64_t>(offsets.size()) - 1; }

  std::span<const int32_t> bin(int64_t index) const {
    const auto first = static_cast<size_t>(offsets[static_cast<size_t>(index)]);
    const auto last = static_cast<size_t>(offsets[static_cast<size_t>(index) + 1]);
    return std::span(documents).subspan(first, last - first);
  }
};

/// Best-fit-decreasing: documents are shuffled and cut into windows; in each window the longest
/// goes first, each into the bin with the least room that suffices; then the order of all bins is
/// shuffled. O(n log n); a window takes at most 11/9 of its best possible bins + 6/9 (Johnson 1974,
/// Dósa 2007). A pure function of lengths, options and epoch, so that a run's place in its data is
/// (seed, epoch, bin). With `groups` the epoch's documents are those that they draw
/// (epoch_documents); without, every document once.
/// Throws InvalidArgument for a capacity or window below 1, a document that is empty or longer than
/// the capacity, or more than 2^31 - 1 documents.
PackingPlan pack_documents(std::span<const int64_t> lengths, const PackingOptions& options,
                           int64_t epoch, std::span<const DocumentGroup> groups = {});

/// The most documents that one bin of an epoch can hold: how many of the shortest fit its capacity,
/// each as often as its group's weight may draw it.
int64_t most_documents_in_a_bin(std::span<const int64_t> lengths, int64_t capacity,
                                std::span<const DocumentGroup> groups = {});

}  // namespace flashloom
