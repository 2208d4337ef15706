#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace flashloom {

/// Documents that follow one another and are drawn equally often.
struct DocumentGroup {
  int64_t first = 0;
  int64_t count = 0;
  double weight = 1;  // times that each is drawn an epoch, on average

  bool operator==(const DocumentGroup&) const = default;
};

/// The documents of an epoch, group by group, not shuffled; a weight above 1 repeats some. Each
/// group is drawn through again and again, each time in a new order (Philox by seed, group and
/// round), and an epoch takes the next weight x count draws: after any number of epochs no document
/// of a group was drawn more than once oftener than another. A pure function of its arguments.
std::vector<int32_t> epoch_documents(std::span<const DocumentGroup> groups, uint64_t seed,
                                     int64_t epoch);

}  // namespace flashloom
