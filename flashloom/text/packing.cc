#include "flashloom/text/packing.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"

namespace flashloom {
namespace {

// Draws an epoch may use; 2^40 leaves 2^24 epochs of 2^39 documents.
constexpr uint64_t kDrawsPerEpoch = uint64_t{1} << 40;

template <class Item>
void shuffle(std::vector<Item>& items, RandomSequence& random) {
  for (size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[random.below(static_cast<uint32_t>(i))]);
  }
}

void check_arguments(std::span<const int64_t> lengths, const PackingOptions& options) {
  if (options.capacity < 1) {
    throw InvalidArgument("pack_documents", "capacity", "1 or more",
                          fmt::format("{}", options.capacity));
  }
  if (options.window < 1) {
    throw InvalidArgument("pack_documents", "window", "1 or more",
                          fmt::format("{}", options.window));
  }
  if (lengths.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw InvalidArgument("pack_documents", "lengths", "at most 2^31 - 1 documents",
                          fmt::format("{}", lengths.size()));
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 1 || lengths[i] > options.capacity) {
      throw InvalidArgument("pack_documents", fmt::format("length of document {}", i),
                            fmt::format("1 to {}", options.capacity),
                            fmt::format("{}", lengths[i]));
    }
  }
}

// Packs one window, given longest first, and appends its bins.
void best_fit(std::span<const int32_t> window, std::span<const int64_t> lengths, int64_t capacity,
              std::vector<std::vector<int32_t>>& bins) {
  std::set<std::pair<int64_t, size_t>> room;  // (tokens left, bin)
  for (const int32_t document : window) {
    const int64_t length = lengths[static_cast<size_t>(document)];
    const auto found = room.lower_bound({length, 0});
    std::pair<int64_t, size_t> bin(capacity, bins.size());
    if (found == room.end()) {
      bins.emplace_back();
    } else {
      bin = *found;
      room.erase(found);
    }
    bins[bin.second].push_back(document);
    if (bin.first > length) {
      room.emplace(bin.first - length, bin.second);
    }
  }
}

}  // namespace

PackingPlan pack_documents(std::span<const int64_t> lengths, const PackingOptions& options,
                           int64_t epoch) {
  check_arguments(lengths, options);
  RandomSequence random(options.seed, RandomStream::data_order,
                        static_cast<uint64_t>(epoch) * kDrawsPerEpoch);
  std::vector<int32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  if (options.shuffle) {
    shuffle(order, random);
  }
  std::vector<std::vector<int32_t>> bins;
  const auto window = static_cast<size_t>(options.window);
  for (size_t first = 0; first < order.size(); first += std::min(window, order.size() - first)) {
    const auto part = std::span(order).subspan(first, std::min(window, order.size() - first));
    std::stable_sort(part.begin(), part.end(), [&](int32_t a, int32_t b) {
      return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
    });
    best_fit(part, lengths, options.capacity, bins);
  }
  if (options.shuffle) {
    shuffle(bins, random);
  }
  PackingPlan plan;
  plan.documents.reserve(lengths.size());
  plan.offsets.reserve(bins.size() + 1);
  for (const auto& bin : bins) {
    plan.documents.insert(plan.documents.end(), bin.begin(), bin.end());
    plan.offsets.push_back(static_cast<int64_t>(plan.documents.size()));
  }
  return plan;
}

int64_t most_documents_in_a_bin(std::vector<int64_t> lengths, int64_t capacity) {
  std::sort(lengths.begin(), lengths.end());
  int64_t room = capacity;
  const auto first_out = std::find_if(lengths.begin(), lengths.end(), [&](int64_t length) {
    room -= length;
    return room < 0;
  });
  return first_out - lengths.begin();
}

}  // namespace flashloom
