#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/backward_shape.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

// From a call to the parameters of the backward kernels, and the workspace that these share.

namespace flashloom::sm90 {

/// What a launch takes, and where the parts of its workspace lie (bytes).
struct BackwardCall {
  const AttentionGradients& gradients;
  const AttentionInputs& inputs;
  const AttentionSaved& saved;
  const AttentionOptions& options;
};

/// Sequences and heads with ranks of their own; offsets and entries may each be shared.
struct RankLists {
  int32_t batch, heads;
};

inline RankLists rank_lists(const AttentionBlocks& mask) {
  return {static_cast<int32_t>(std::max(mask.column_offsets.shape[0], mask.rows.shape[0])),
          static_cast<int32_t>(std::max(mask.column_offsets.shape[1], mask.rows.shape[1]))};
}

struct BackwardWorkspace {
  int64_t lse, delta, dentropy, dq, added, ended, ready, next, works, ranks, counts;
  int64_t part_sums, part_counts, end;
  int64_t query_tiles;  // a head
  int64_t places;
};

/// Tiles of `keys` keys of a key-value head, of all sequences if packed.
inline int64_t backward_key_tiles(const Problem& problem, int64_t keys) {
  return problem.cu_key != nullptr ? problem.total_key / keys + problem.batch
                                   : (problem.key_length + keys - 1) / keys;
}

/// Sequences and key-value heads whose keys are neighbours in the order of blocks.
inline int64_t backward_heads(const Problem& problem) {
  return int64_t{problem.cu_key != nullptr ? 1 : problem.batch} *
         (problem.heads / problem.heads_per_key);
}

/// `sums`: columns of the sums of dQ, 0 without them; `keys`: of a tile, where blocks stay; `split`
/// has sums of tiles of `split_bytes`.
inline BackwardWorkspace backward_workspace(const AttentionInputs& inputs,
                                            const AttentionSaved& saved,
                                            const AttentionOptions& options, int64_t queries,
                                            int64_t sums, int64_t keys = 0,
                                            const BackwardSplit& split = {},
                                            int64_t split_bytes = 0) {
  const ConstTensorView q = as_batched(inputs.q);
  const Problem problem = make_problem(q, as_batched(inputs.k), options);
  const bool packed = options.sequences.cu_query.rank > 0;
  BackwardWorkspace workspace = {};
  workspace.query_tiles = packed ? q.shape[2] / queries + problem.batch
                                 : (problem.query_length + queries - 1) / queries;
  workspace.places = int64_t{packed ? 1 : problem.batch} * problem.heads * workspace.query_tiles;
  const auto aligned = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t works = keys != 0 ? backward_key_tiles(problem, keys) * backward_heads(problem) : 0;
  workspace.delta = workspace.lse + aligned(workspace.places * queries * 4);
  workspace.dentropy = workspace.delta + aligned(workspace.places * queries * 4);
  workspace.dq =
      workspace.dentropy + (saved.dentropy ? aligned(workspace.places * queries * 4) : 0);
  workspace.added = workspace.dq + workspace.places * queries * sums * 4;
  workspace.ended = workspace.added + aligned(workspace.places * 8);
  workspace.ready = workspace.ended + aligned(int64_t{problem.batch} * problem.heads * 4);
  workspace.next = workspace.ready + aligned(int64_t{problem.batch} * problem.heads * 4);
  workspace.works = workspace.next + 64;
  workspace.ranks = workspace.works + works * static_cast<int64_t>(sizeof(BackwardWork));
  const AttentionBlocks& mask = options.blocks;
  workspace.counts = workspace.ranks;
  if (mask.rows) {
    const auto [batch, heads] = rank_lists(mask);
    const int64_t lists = int64_t{batch} * heads;
    const int64_t row_count = (problem.query_length - 1) / mask.block_rows + 1;
    workspace.counts += aligned(lists * mask.rows.shape[2] * 4);
    workspace.part_sums = workspace.counts + aligned(lists * row_count * 4);
  } else {
    workspace.part_sums = workspace.counts;
  }
  workspace.part_counts = workspace.part_sums + int64_t{split.tiles} * split.parts * split_bytes;
  workspace.end = workspace.part_counts + aligned(int64_t{split.tiles} * 8);
  return workspace;
}

/// `scalars`: without a last dimension. `storage` is the kernel's.
inline RowTensor row_tensor(const ConstTensorView& view, bool scalars, DType storage) {
  const int heads = view.rank - (scalars ? 2 : 3);
  return {const_cast<void*>(view.data), heads == 1 ? view.strides[0] : 0, view.strides[heads],
          view.strides[heads + 1], view.dtype != storage};
}

inline BackwardScore backward_score(const AttentionOptions& options) {
  BackwardScore score = {};
  score.softcap = options.score.softcap;
  if (const ConstTensorView& slopes = options.score.alibi_slopes; slopes) {
    score.slopes = static_cast<const float*>(slopes.data);
    score.slope_head = slopes.strides[slopes.rank - 1];
    score.slope_batch = slopes.rank == 2 && slopes.shape[0] > 1 ? slopes.strides[0] : 0;
  }
  score.keep = 1;
  if (options.dropout.probability != 0) {
    score.seed = static_cast<const uint64_t*>(options.dropout.seed.data);
    score.offset = static_cast<const uint64_t*>(options.dropout.offset.data);
    score.threshold =
        static_cast<uint32_t>(attention_dropout_threshold(options.dropout.probability));
    score.keep = 1 / (1 - options.dropout.probability);
  }
  score.exclude_self = options.positions.exclude_self;
  return score;
}

inline BackwardBlocks backward_blocks(const AttentionInputs& inputs,
                                      const AttentionOptions& options, int32_t queries) {
  const AttentionBlocks& mask = options.blocks;
  const GeometrySource source = geometry_source(inputs, options);
  BackwardBlocks blocks = {};
  blocks.offsets = source.transposed_offsets;
  blocks.rows = source.transposed_entries;
  blocks.partial = source.transposed_partial;
  blocks.bits = source.bits;
  blocks.queries = source.block_rows;
  blocks.keys = source.block_keys;
  blocks.query_tiles = source.block_rows / queries;
  blocks.row_count = (source.max_query - 1) / source.block_rows + 1;
  blocks.entry_count = static_cast<int32_t>(mask.rows.shape[2]);
  blocks.partial_count = mask.bits ? static_cast<int32_t>(mask.bits.shape[0]) : 0;
  const auto [batch, heads] = rank_lists(mask);
  blocks.rank_head = heads > 1 ? 1 : 0;
  blocks.rank_batch = batch > 1 ? heads : 0;
  return blocks;
}

/// What the kernels around the main one take.
inline BackwardRowParams backward_rows(const BackwardCall& call, const BackwardWorkspace& place,
                                       std::byte* memory) {
  const auto& [gradients, inputs, saved, options] = call;
  const DType storage = inputs.q.dtype;
  BackwardRowParams rows = {};
  rows.problem = make_problem(as_batched(inputs.q), as_batched(inputs.k), options);
  rows.columns = static_cast<int32_t>(inputs.q.dim(-1));
  rows.value_columns = static_cast<int32_t>(inputs.v.dim(-1));
  rows.out = row_tensor(saved.out, false, storage);
  rows.dout = row_tensor(saved.dout, false, storage);
  rows.dq = row_tensor(gradients.dq, false, storage);
  rows.lse = row_tensor(saved.lse, true, storage);
  if (saved.dlse) {
    rows.dlse = row_tensor(saved.dlse, true, storage);
  }
  if (gradients.dsinks) {
    rows.sinks = static_cast<const float*>(options.score.sinks.data);
    rows.sinks_stride = options.score.sinks.strides[0];
    rows.dsinks = static_cast<float*>(gradients.dsinks.data);
    rows.dsinks_stride = gradients.dsinks.strides[0];
  }
  rows.padded_lse = reinterpret_cast<float*>(memory + place.lse);
  rows.delta = reinterpret_cast<float*>(memory + place.delta);
  if (saved.dentropy) {
    rows.entropy = row_tensor(saved.entropy, true, storage);
    rows.dentropy = row_tensor(saved.dentropy, true, storage);
    rows.padded_dentropy = reinterpret_cast<float*>(memory + place.dentropy);
  }
  rows.scale = score_scale(options, inputs.q.dim(-1));
  rows.accumulate = gradients.accumulate;
  rows.half = storage == DType::f16;
  rows.split.parts = 1;
  rows.query_tiles = static_cast<int32_t>(place.query_tiles);
  rows.tiles = Divisor(std::max<int64_t>(place.query_tiles, 1));
  rows.heads = Divisor(rows.problem.heads);
  return rows;
}

/// Behind the first `alone` heads, `section` heads are worked on together, at the end `last` or up
/// to a section more; 0: tiles of a head are neighbours.
inline BackwardOrder backward_order(const Problem& problem, int32_t key_tiles, int32_t section,
                                    int32_t alone = 0, int32_t last = 1) {
  const int64_t heads = backward_heads(problem) - alone;
  BackwardOrder order = {};
  order.alone = alone;
  order.section = section;
  order.tiles = Divisor(std::max(key_tiles, 1));
  order.heads = Divisor(problem.heads / problem.heads_per_key);
  if (section > 0) {
    order.sections = 1 + static_cast<int32_t>(std::max<int64_t>(heads - last, 0) / section);
    order.blocks = Divisor(std::max<int64_t>(1, int64_t{section} * key_tiles));
    order.width = Divisor(section);
    order.last = Divisor(std::max<int64_t>(1, heads - int64_t{order.sections - 1} * section));
  }
  return order;
}

inline BackwardParams backward_params(const BackwardCall& call, const BackwardRowParams& rows,
                                      int32_t keys) {
  const DType storage = call.inputs.q.dtype;
  BackwardParams params = {};
  params.problem = rows.problem;
  params.columns = rows.columns;
  params.value_columns = rows.value_columns;
  params.dk = row_tensor(call.gradients.dk, false, storage);
  params.dv = row_tensor(call.gradients.dv, false, storage);
  params.lse = rows.padded_lse;
  params.delta = rows.delta;
  params.dentropy = rows.padded_dentropy;
  params.dq = rows.dq_sum;
  params.added = rows.added;
  params.ended = rows.ended;
  params.scale = rows.scale;
  params.accumulate = rows.accumulate;
  params.in_turn = call.options.execution.deterministic;
  params.query_tiles = rows.query_tiles;
  params.score = backward_score(call.options);
  params.key_tiles = static_cast<int32_t>(backward_key_tiles(rows.problem, keys));
  params.order = backward_order(rows.problem, params.key_tiles, 0);
  return params;
}

/// For kernels whose blocks own `queries` queries.
inline QueriesParams queries_params(const BackwardCall& call, const BackwardRowParams& rows,
                                    int32_t queries) {
  QueriesParams params = {};
  params.problem = rows.problem;
  params.columns = rows.columns;
  params.dq = rows.dq;
  params.lse = rows.padded_lse;
  params.delta = rows.delta;
  params.scale = rows.scale;
  params.accumulate = rows.accumulate;
  params.descending = call.options.visibility.right >= 0;
  params.query_tiles = rows.query_tiles;
  const bool packed = rows.problem.cu_query != nullptr;
  params.blocks = packed ? rows.problem.total_query / queries + rows.problem.batch
                         : (rows.problem.query_length + queries - 1) / queries;
  params.section = 1;
  params.score = backward_score(call.options);
  return params;
}

inline int64_t queries_heads(const Problem& problem) {
  return int64_t{problem.cu_query != nullptr ? 1 : problem.batch} * problem.heads;
}

}  // namespace flashloom::sm90
