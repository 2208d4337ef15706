#pragma once

#include <cstdint>
#include <string>

#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// Attention to be computed: `heads` query heads over `key_heads` heads of keys and values, each
/// serving heads / key_heads of them.
struct AttentionProblem {
  int heads = 1;
  int key_heads = 0;    // 0: as heads
  int queries = 128;    // of a head
  int keys = 0;         // 0: as queries
  int head_dim = 0;     // 0: the array's rows
  int value_dim = 0;    // 0: as head_dim; above the rows by blocks of value columns
  bool causal = false;  // query i sees keys up to i + keys - queries

  bool operator==(const AttentionProblem&) const = default;
};

/// Fills in the zeros; throws InvalidArgument with the reason if the machine cannot run it.
AttentionProblem checked_problem(const MachineConfig& config, AttentionProblem problem);

/// "8 heads (2 of keys), 100 queries, 260 keys, head dimension 64, causal"
std::string describe(const AttentionProblem& problem);

/// How the problem lies in tiles. Queries of all heads that share keys stand side by side when the
/// mask does not tell them apart (`packed`), so that a decoding step fills columns.
struct AttentionTiling {
  bool packed = false;
  int lead = 0;     // empty columns before the first query, so that causal diagonals meet tiles
  int groups = 1;   // of columns with keys of their own: key heads, or heads if not packed
  int columns = 0;  // queries of a group, `lead` included
  int query_blocks = 0;  // of a group
  int key_blocks = 0;
  int first_diagonal = 0;  // causal: query block i meets its diagonal in key block i + this
  int last_keys = 0;       // keys of the last block
  int value_blocks = 1;    // of as many value columns as the array has rows

  /// Key blocks that a query block visits.
  int visited(const AttentionProblem& problem, int query_block) const;
};

/// Rows of the accumulation SRAM that a block of queries needs: its sums and its output.
int accumulator_rows_for(const MachineConfig& config, const AttentionProblem& problem);

AttentionTiling tiling_of(const MachineConfig& config, const AttentionProblem& problem);

/// Where everything lies in main memory, in bytes. Rows are padded to the SRAM's: queries and keys
/// (group, row, R), values transposed (group, value blocks, R, key columns), output transposed
/// (group, value blocks, R, columns).
struct AttentionLayout {
  int64_t query = 0;
  int64_t key = 0;
  int64_t value = 0;
  int64_t output = 0;
  int64_t query_group_bytes = 0;
  int64_t key_group_bytes = 0;
  int64_t value_group_bytes = 0;
  int64_t output_group_bytes = 0;
  int64_t value_stride = 0;  // bytes from one row of V^T to the next
  int64_t output_stride = 0;
  int64_t bytes = 0;
};

AttentionLayout layout_of(const MachineConfig& config, const AttentionProblem& problem);

}  // namespace flashloom::systolic
