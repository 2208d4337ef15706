#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "flashloom/ops/attention/sm90/problem.cuh"

// How much of the device is set aside for the kernels around the main backward kernel, which run
// beside it: a few multiprocessors prepare rows of heads to come and turn sums of heads that are
// done into dq, both at the memory's rate, while the tensor cores of the others are busy.

namespace flashloom::sm90 {

/// Keys of an average query's sequence, as far as the host knows.
inline double sequence_keys(const Problem& problem) {
  const double longest = problem.key_length;
  if (problem.cu_key == nullptr) {
    return longest;
  }
  // Long sequences have most queries: between the average and the longest one, but not far from the
  // average, since few may be as long. Too high an estimate leaves main blocks waiting for rows.
  constexpr double kMost = 2;
  const double average = static_cast<double>(problem.total_key) / std::max(problem.batch, 1);
  return std::min(std::sqrt(average * longest), kMost * average);
}

/// Keys that an average query sees.
inline double visible_keys(const Problem& problem, const AttentionOptions& options) {
  const double keys = sequence_keys(problem);
  const auto& [left, right] = options.visibility;
  if (left >= 0 && right >= 0) {
    return std::min(keys, static_cast<double>(left + right + 1));
  }
  return left >= 0 || right >= 0 ? keys / 2 : keys;
}

/// How a main kernel's work compares with that of the kernels around it.
struct BesideWork {
  double keys;     // that a query sees
  int32_t dim;     // columns
  bool clears;     // the sums of dQ before
  bool converts;   // the sums of dQ are converted beside too
  int64_t blocks;  // of the main kernel
};

/// Multiprocessors of `all` that are set aside; 0: the kernels follow each other. They prepare rows
/// first; two thirds of them for rows, one for sums at the same time, are no faster.
inline int32_t multiprocessors_aside(const BesideWork& work, int32_t all) {
  // With few blocks each has one tile of keys or two, and one more would be a round more.
  if (work.blocks < int64_t{3} * all) {
    return 0;
  }
  if (!work.converts) {
    // They are the main kernel's as soon as all rows are there.
    return std::max(1, all / 16);
  }
  // Time a query costs the kernels around, in that of a step of its tile over 128 keys: measured
  // optima are 9 of 132 at 1024 causal keys and 128 columns, 5 at 2048, 3 at 4096.
  const double each = (work.dim > 64 ? 0.37 : 0.30) * (work.clears ? 2 : 1);
  const double share = each / (work.keys / 128 + 0.5);
  return std::max(1, static_cast<int32_t>(std::ceil(all * share / (1 + share))));
}

/// Key-value heads that are worked on together under a causal mask, longest tiles first, so that
/// blocks have `rounds` tiles each: with more heads their sums of dQ do not stay in the cache until
/// they are complete, with fewer the last tiles are too long.
inline int32_t causal_section(int64_t heads, int64_t key_tiles, int32_t blocks, double rounds) {
  const auto fit = static_cast<int64_t>(
      std::round(rounds * blocks / static_cast<double>(std::max<int64_t>(key_tiles, 1))));
  return heads_side_by_side(heads, 1, 1, fit);
}

}  // namespace flashloom::sm90
