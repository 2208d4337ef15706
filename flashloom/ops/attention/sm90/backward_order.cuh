#pragma once

#include <algorithm>
#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_beside.cuh"
#include "flashloom/ops/attention/sm90/backward_call.cuh"

// How many heads the backward kernels work on at a time.

namespace flashloom::sm90 {

/// Query rows that a block walks for a head, on average; of packed sequences, of the average one.
inline int64_t average_rows(const AttentionOptions& options, const Problem& problem) {
  const int64_t rows = problem.cu_query != nullptr
                           ? problem.total_query / std::max(problem.batch, 1)
                           : int64_t{problem.query_length};
  const auto& [left, right] = options.visibility;
  if (options.blocks.rows) {
    const int64_t columns = options.blocks.column_offsets.shape[2] - 1;
    return options.blocks.rows.shape[2] / columns * options.blocks.block_rows;
  }
  if (right >= 0) {
    return left < 0 ? rows / 2 : std::min(rows, left + right + 128);
  }
  return rows;
}

/// Heads worked on together where blocks take turns and early keys come first. A block meets a tile
/// of queries a turn after the one before it, so one head can only start so many blocks a
/// microsecond: with the steps of a block, that gives the heads that keep all multiprocessors busy.
template <class Shape>
int32_t heads_that_take_turns(const BackwardCall& call, const Problem& problem, int64_t key_tiles) {
  constexpr int64_t kTurn = 2;  // steps from a block's turn to the next block's
  const AttentionOptions& options = call.options;
  const int64_t all = device_multiprocessors();
  const int64_t of_call = backward_heads(problem);
  const int64_t rows = average_rows(options, problem);
  const int64_t steps = std::max<int64_t>(1, rows / Shape::kQueries * problem.heads_per_key);
  int64_t heads = (kTurn * all + steps - 1) / steps;
  const bool causal = options.visibility.right >= 0;
  const bool plain = problem.cu_query == nullptr && options.visibility.left < 0 && key_tiles > 0 &&
                     of_call > 0 && !options.blocks.rows;
  if (plain && !causal) {
    // At least a round of blocks (128 columns, 32/8 heads 2k 0.905 -> 0.94 of the fast mode, 4k
    // 0.906 -> 0.92, 8k 0.90 -> 0.917; 64 columns 2k 0.92 -> 0.94), and no more where sums of 128
    // columns are converted beside (1k 0.915 -> 0.975, 2k 0.925 -> 0.943).
    const int64_t round = std::max<int64_t>(1, (all + key_tiles / 2) / key_tiles);
    heads = Shape::kStays && Shape::kDim == 128 ? round : std::max(heads, round);
  } else if (plain) {
    // Sections of one size: the last one must not be a head alone (4096 keys of 64 columns, 32/8
    // heads: 5 of 32 heads 0.87, 4 0.95).
    int64_t equal = std::min(heads, of_call);
    while (of_call % equal != 0) {
      --equal;
    }
    if (2 * equal >= heads) {
      // Not one of just a round: its blocks end as they began, so that the next one's begin all at
      // once (128 columns, 32/8 heads 8k 0.93 -> 0.97, 64 columns 4k 0.95 -> 0.96).
      const int64_t blocks = equal * key_tiles;
      const bool is_round = 20 * blocks >= 19 * all && 20 * blocks <= 21 * all;
      return static_cast<int32_t>(is_round && of_call % (2 * equal) == 0 ? 2 * equal : equal);
    }
  }
  return heads_side_by_side(of_call, 1, 1, heads);
}

/// Where turns begin with late keys, which have the fewest queries under a causal mask, a head ends
/// with its longest blocks. The last heads go the other way, side by side, so that the call ends
/// with short ones: as many as have one block a multiprocessor of an H100. Another GPU takes the
/// same number, so that its sums are the same bits.
inline int32_t heads_in_reverse(int64_t heads, int64_t key_tiles) {
  constexpr int64_t kBlocks = 132;
  const int64_t tiles = std::max<int64_t>(key_tiles, 1);
  return static_cast<int32_t>(std::min(heads, std::max<int64_t>(1, (kBlocks + tiles / 2) / tiles)));
}

/// For BackwardOrder.
struct BackwardSections {
  int32_t together, alone;
  int32_t last;  // heads that are worked on together at the end, at least
};

/// `kBeside`: rows and sums are worked on beside the tiles; `blocks` run at a time.
template <class Shape, bool kBeside>
BackwardSections backward_sections(const BackwardCall& call, const BackwardParams& params,
                                   int32_t blocks) {
  const AttentionOptions& options = call.options;
  const Problem& problem = params.problem;
  const int64_t heads = backward_heads(problem);
  const bool deterministic = options.execution.deterministic;
  const bool causal = options.visibility.right >= 0 && options.visibility.left < 0;
  const bool packed = problem.cu_key != nullptr;
  BackwardSections sections = {0, 0, 1};
  if (deterministic && causal && !options.blocks.rows && problem.heads_per_key == 1) {
    // With several query heads a block, a tile of queries would be met again too late for the cache
    // (0.65 of the rate at 4 heads): 80 KB a step of each of 132 blocks lie between.
    // Of packed sequences no head goes the other way: their order ends with short ones.
    sections.together = packed ? 0 : heads_in_reverse(heads, params.key_tiles);
    sections.alone = static_cast<int32_t>(heads) - sections.together;
  } else if (deterministic) {
    sections.together = heads_that_take_turns<Shape>(call, problem, params.key_tiles);
    if (causal && !options.blocks.rows && !packed && params.key_tiles >= 16) {
      // With fewer at the end, multiprocessors are idle beside its first, long tiles.
      sections.last = heads_in_reverse(heads, params.key_tiles);
    }
  } else if (causal && !packed) {
    if constexpr (kBeside) {
      // At 128 columns half a round is best up to 2048 keys without grouped heads, else one; at 64
      // columns two.
      const bool few = problem.key_length <= 2048 && problem.heads_per_key == 1;
      const double rounds = Shape::kDim <= 64 ? 2 : few ? 0.5 : 1;
      sections.together = causal_section(heads, params.key_tiles, blocks, rounds);
      // The call ends with short tiles only if the last long ones begin early enough: with half a
      // round at the end, blocks end 37 us before the last one of 700 on average (2048 keys).
      sections.last = causal_section(heads, params.key_tiles, blocks, std::max(rounds, 1.0));
    } else {
      const int64_t bytes = int64_t{8} * problem.query_length * Shape::kDim * problem.heads_per_key;
      sections.together = heads_side_by_side(heads, bytes, 1, int64_t{32} << 20);
    }
  }
  if (Shape::kStays && sections.together == 0 && packed) {
    // With one, blocks are idle behind the last long document; more than two gain nothing.
    constexpr int64_t kPackedHeads = 2;
    sections.together = heads_side_by_side(heads, 1, 1, kPackedHeads);
  }
  return sections;
}

}  // namespace flashloom::sm90
