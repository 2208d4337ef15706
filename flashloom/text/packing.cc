#include "flashloom/text/packing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
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

// Packs one window, given longest first, and appends its bins to the plan.
void best_fit(std::span<const int32_t> window, std::span<const int64_t> lengths, int64_t capacity,
              PackingPlan& plan) {
  std::vector<std::vector<int32_t>> bins;
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
  for (const std::vector<int32_t>& bin : bins) {
    plan.documents.insert(plan.documents.end(), bin.begin(), bin.end());
    plan.offsets.push_back(static_cast<int64_t>(plan.documents.size()));
  }
}

PackingPlan with_shuffled_bins(const PackingPlan& plan, RandomSequence& random) {
  std::vector<int32_t> order(static_cast<size_t>(plan.bins()));
  std::iota(order.begin(), order.end(), 0);
  shuffle(order, random);
  PackingPlan shuffled;
  shuffled.documents.reserve(plan.documents.size());
  shuffled.offsets.reserve(plan.offsets.size());
  for (const int32_t index : order) {
    const std::span<const int32_t> bin = plan.bin(index);
    shuffled.documents.insert(shuffled.documents.end(), bin.begin(), bin.end());
    shuffled.offsets.push_back(static_cast<int64_t>(shuffled.documents.size()));
  }
  return shuffled;
}

}  // namespace

PackingPlan pack_documents(std::span<const int64_t> lengths, const PackingOptions& options,
                           int64_t epoch, std::span<const DocumentGroup> groups) {
  check_arguments(lengths, options);
  RandomSequence random(options.seed, RandomStream::data_order,
                        static_cast<uint64_t>(epoch) * kDrawsPerEpoch);
  std::vector<int32_t> order;
  if (groups.empty()) {
    order.resize(lengths.size());
    std::iota(order.begin(), order.end(), 0);
  } else {
    order = epoch_documents(groups, options.seed, epoch);
  }
  if (options.shuffle) {
    shuffle(order, random);
  }
  PackingPlan plan;
  plan.documents.reserve(order.size());
  const auto window = static_cast<size_t>(options.window);
  for (size_t first = 0; first < order.size(); first += std::min(window, order.size() - first)) {
    const auto part = std::span(order).subspan(first, std::min(window, order.size() - first));
    std::stable_sort(part.begin(), part.end(), [&](int32_t a, int32_t b) {
      return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
    });
    best_fit(part, lengths, options.capacity, plan);
  }
  return options.shuffle ? with_shuffled_bins(plan, random) : plan;
}

int64_t most_documents_in_a_bin(std::span<const int64_t> lengths, int64_t capacity,
                                std::span<const DocumentGroup> groups) {
  std::map<int64_t, int64_t> copies;  // by length
  const auto add = [&](int64_t first, int64_t count, int64_t times) {
    for (int64_t i = first; i < first + count; ++i) {
      copies[lengths[static_cast<size_t>(i)]] += times;
    }
  };
  if (groups.empty()) {
    add(0, static_cast<int64_t>(lengths.size()), 1);
  }
  for (const DocumentGroup& group : groups) {
    // An epoch of a broken weight may end one round and begin another, besides its whole ones.
    const double whole = std::floor(group.weight);
    add(group.first, group.count, static_cast<int64_t>(whole) + (group.weight > whole ? 2 : 0));
  }
  int64_t documents = 0;
  int64_t room = capacity;
  for (const auto& [length, times] : copies) {
    const int64_t taken = std::min(times, room / length);
    documents += taken;
    room -= taken * length;
    if (taken < times) {
      break;
    }
  }
  return documents;
}

}  // namespace flashloom
