#include "flashloom/text/document_group.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "flashloom/core/philox.h"

namespace flashloom {
namespace {

// Draws that one round of one group may use: 2^31 documents, each with some luck to spare.
constexpr int kRoundBits = 33;
constexpr int kGroupBits = 20;  // rounds of a group

std::vector<int32_t> permutation(int64_t count, uint64_t seed, size_t group, int64_t round) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  const uint64_t place = (uint64_t{group} << kGroupBits) + static_cast<uint64_t>(round);
  RandomSequence random(seed, RandomStream::data_choice, place << kRoundBits);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
  }
  return order;
}

}  // namespace

std::vector<int32_t> epoch_documents(std::span<const DocumentGroup> groups, uint64_t seed,
                                     int64_t epoch) {
  std::vector<int32_t> documents;
  for (size_t g = 0; g < groups.size(); ++g) {
    const DocumentGroup& group = groups[g];
    if (group.count == 0) {
      continue;
    }
    // Rounded up, so that the first epoch of every group has a document.
    const auto drawn_before = [&](int64_t epochs) {
      return static_cast<int64_t>(
          std::ceil(static_cast<double>(epochs) * group.weight * static_cast<double>(group.count)));
    };
    const int64_t end = drawn_before(epoch + 1);
    for (int64_t draw = drawn_before(epoch); draw < end;) {
      const int64_t round = draw / group.count;
      const int64_t from = draw % group.count;
      const int64_t to = std::min(group.count, from + end - draw);
      // All of them need no order: the epoch is shuffled later.
      const bool whole = to - from == group.count;
      const std::vector<int32_t> order =
          whole ? std::vector<int32_t>() : permutation(group.count, seed, g, round);
      for (int64_t i = from; i < to; ++i) {
        const int64_t index = whole ? i : order[static_cast<size_t>(i)];
        documents.push_back(static_cast<int32_t>(group.first + index));
      }
      draw += to - from;
    }
  }
  return documents;
}

}  // namespace flashloom
