#include "flashloom/train/parallel/shards.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "flashloom/core/check.h"

namespace flashloom {

Shards::Shards(std::span<const int64_t> tensor_sizes, int ranks, int64_t block) {
  check(ranks >= 1, "Shards", "ranks", "1 or more", fmt::format("{}", ranks));
  check(block >= 1, "Shards", "block", "1 or more", fmt::format("{}", block));
  const int64_t total = std::accumulate(tensor_sizes.begin(), tensor_sizes.end(), int64_t{0});
  // Where rank r's range begins: at r / ranks of all, moved down to a block of the tensor there.
  const auto begin_of = [&](int rank) {
    const int64_t ideal = total / ranks * rank + total % ranks * rank / ranks;
    int64_t tensor_begin = 0;
    for (const int64_t size : tensor_sizes) {
      if (ideal < tensor_begin + size) {
        return tensor_begin + (ideal - tensor_begin) / block * block;
      }
      tensor_begin += size;
    }
    return total;
  };
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t begin = begin_of(rank);
    const int64_t end = rank + 1 == ranks ? total : begin_of(rank + 1);
    std::vector<TensorPart>& parts = parts_.emplace_back();
    int64_t tensor_begin = 0;
    for (const int64_t size : tensor_sizes) {
      const int64_t first = std::clamp(begin - tensor_begin, int64_t{0}, size);
      const int64_t last = std::clamp(end - tensor_begin, int64_t{0}, size);
      parts.push_back({first, last - first});
      tensor_begin += size;
    }
  }
}

int64_t Shards::elements(int rank) const {
  const auto parts = of(rank);
  return std::accumulate(parts.begin(), parts.end(), int64_t{0},
                         [](int64_t sum, const TensorPart& part) { return sum + part.count; });
}

}  // namespace flashloom
