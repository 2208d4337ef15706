#include "flashloom/systolic/program/attention_problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"

namespace flashloom::systolic {
namespace {

// A DMA instruction's memory stride is 21 bits with sign, its address 39 bits.
constexpr int64_t kMostStride = (int64_t{1} << 20) - 1;
constexpr int64_t kMostBytes = int64_t{1} << 39;
constexpr int kMostCausalColumns = 256;
// 32 semaphores, six of them for two buffers each of Q, K and V.
constexpr int kMostValueBlocks = 26;

void check(bool ok, std::string_view what, std::string_view expected, std::string_view actual) {
  if (!ok) {
    throw InvalidArgument("systolic", what, expected, actual);
  }
}

int positive_mod(int value, int divisor) {
  return (value % divisor + divisor) % divisor;
}

}  // namespace

AttentionProblem checked_problem(const MachineConfig& config, AttentionProblem problem) {
  check_machine(config);
  problem.key_heads = problem.key_heads == 0 ? problem.heads : problem.key_heads;
  problem.keys = problem.keys == 0 ? problem.queries : problem.keys;
  problem.head_dim = problem.head_dim == 0 ? config.shape.rows : problem.head_dim;
  problem.value_dim = problem.value_dim == 0 ? problem.head_dim : problem.value_dim;
  const int rows = config.shape.rows;
  const int columns = config.shape.columns;
  check(problem.heads > 0 && problem.key_heads > 0 && problem.heads % problem.key_heads == 0,
        "heads", "a positive multiple of the key heads",
        fmt::format("{} of {} key heads", problem.heads, problem.key_heads));
  check(problem.queries > 0 && problem.keys > 0, "sequence", "at least one query and one key",
        fmt::format("{} queries, {} keys", problem.queries, problem.keys));
  check(problem.head_dim > 0 && problem.head_dim <= rows, "head dimension",
        fmt::format("from 1 to {}: a PE's row holds one of its elements, and a sum over more rows "
                    "than the array has would have to leave it between two passes",
                    rows),
        fmt::format("{}", problem.head_dim));
  check(
      problem.value_dim > 0 && problem.value_dim <= kMostValueBlocks * rows, "value dimension",
      fmt::format("from 1 to {}: blocks of {} value columns, of which each output has a semaphore",
                  kMostValueBlocks * rows, rows),
      fmt::format("{}", problem.value_dim));
  if (problem.causal) {
    check(rows == columns, "causal", "a square array: the mask compares key and query of one tile",
          fmt::format("{} x {}", rows, columns));
    check(columns <= kMostCausalColumns, "causal",
          fmt::format("at most {} columns: the mask's counter has 8 bits", kMostCausalColumns),
          fmt::format("{}", columns));
    check(problem.keys >= problem.queries, "causal",
          "at least as many keys as queries: others would see no key, and their sum is zero",
          fmt::format("{} queries, {} keys", problem.queries, problem.keys));
  }
  const int needed = accumulator_rows_for(config, problem);
  check(
      config.accumulator_rows == 0 || config.accumulator_rows >= needed, "accumulator-rows",
      fmt::format("at least {}: a row of sums and an output tile for every {} of {} value columns",
                  needed, rows, problem.value_dim),
      fmt::format("{}", config.accumulator_rows));
  const AttentionLayout layout = layout_of(config, problem);
  check(layout.value_stride <= kMostStride && layout.output_stride <= kMostStride, "sequence",
        fmt::format("rows of values and outputs at most {} bytes apart", kMostStride),
        fmt::format("{} and {}", layout.value_stride, layout.output_stride));
  check(layout.bytes <= kMostBytes, "sequence", "a memory of at most 2^39 bytes",
        fmt::format("{}", layout.bytes));
  return problem;
}

std::string describe(const AttentionProblem& problem) {
  std::string text = fmt::format("{} head{}", problem.heads, problem.heads == 1 ? "" : "s");
  if (problem.key_heads != problem.heads) {
    text += fmt::format(" ({} of keys)", problem.key_heads);
  }
  text += fmt::format(", {} queries, {} keys, head dimension {}", problem.queries, problem.keys,
                      problem.head_dim);
  if (problem.value_dim != problem.head_dim) {
    text += fmt::format(", value dimension {}", problem.value_dim);
  }
  return text + (problem.causal ? ", causal" : "");
}

int AttentionTiling::visited(const AttentionProblem& problem, int query_block) const {
  const bool masked = problem.causal && !packed;
  return masked ? std::min(query_block + first_diagonal + 1, key_blocks) : key_blocks;
}

AttentionTiling tiling_of(const MachineConfig& config, const AttentionProblem& problem) {
  AttentionTiling tiling;
  // One query at the end sees every key: causal says nothing.
  tiling.packed = !problem.causal || problem.queries == 1;
  if (tiling.packed) {
    tiling.groups = problem.key_heads;
    tiling.columns = problem.heads / problem.key_heads * problem.queries;
  } else {
    tiling.groups = problem.heads;
    tiling.lead = positive_mod(problem.keys - problem.queries, config.shape.columns);
    tiling.columns = tiling.lead + problem.queries;
    tiling.first_diagonal = (problem.keys - problem.queries - tiling.lead) / config.shape.columns;
  }
  tiling.query_blocks = static_cast<int>(tile_count(tiling.columns, config.shape.columns));
  tiling.key_blocks = static_cast<int>(tile_count(problem.keys, config.shape.rows));
  tiling.value_blocks = static_cast<int>(tile_count(problem.value_dim, config.shape.rows));
  tiling.last_keys = problem.keys - (tiling.key_blocks - 1) * config.shape.rows;
  return tiling;
}

int accumulator_rows_for(const MachineConfig& config, const AttentionProblem& problem) {
  const int rows = config.shape.rows;
  return 1 + static_cast<int>(tile_count(problem.value_dim, rows)) * rows;
}

AttentionLayout layout_of(const MachineConfig& config, const AttentionProblem& problem) {
  const AttentionTiling tiling = tiling_of(config, problem);
  const int64_t element = config.formats.element.width() / 8;
  const int64_t sum = config.formats.accumulator.width() / 8;
  const int64_t rows = config.shape.rows;
  const int64_t columns = int64_t{tiling.query_blocks} * config.shape.columns;
  const int64_t keys = int64_t{tiling.key_blocks} * rows;
  AttentionLayout layout;
  layout.query_group_bytes = columns * rows * element;
  layout.key_group_bytes = keys * rows * element;
  layout.value_stride = keys * element;
  layout.value_group_bytes = tiling.value_blocks * rows * layout.value_stride;
  layout.output_stride = columns * sum;
  layout.output_group_bytes = tiling.value_blocks * rows * layout.output_stride;
  layout.key = tiling.groups * layout.query_group_bytes;
  layout.value = layout.key + problem.key_heads * layout.key_group_bytes;
  layout.output = layout.value + problem.key_heads * layout.value_group_bytes;
  layout.bytes = layout.output + tiling.groups * layout.output_group_bytes;
  return layout;
}

}  // namespace flashloom::systolic
