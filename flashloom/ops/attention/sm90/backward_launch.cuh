#pragma once

#include <algorithm>
#include <cstddef>

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/sm90/backward_beside.cuh"
#include "flashloom/ops/attention/sm90/backward_kernel.cuh"
#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/backward_stay.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

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
  int64_t lse, delta, dentropy, dq, added, ended, ready, next, works, ranks, counts, end;
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

/// `sums`: columns of the sums of dQ, 0 without them; `keys`: of a tile, where blocks stay.
inline BackwardWorkspace backward_workspace(const AttentionInputs& inputs,
                                            const AttentionSaved& saved,
                                            const AttentionOptions& options, int64_t queries,
                                            int64_t sums, int64_t keys = 0) {
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
    workspace.end = workspace.counts + aligned(lists * row_count * 4);
  } else {
    workspace.end = workspace.counts;
  }
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
  rows.query_tiles = static_cast<int32_t>(place.query_tiles);
  rows.tiles = Divisor(std::max<int64_t>(place.query_tiles, 1));
  rows.heads = Divisor(rows.problem.heads);
  return rows;
}

/// Behind the first `alone` heads, `section` heads are worked on together; 0: tiles of a head are
/// neighbours.
inline BackwardOrder backward_order(const Problem& problem, int32_t key_tiles, int32_t section,
                                    int32_t alone = 0) {
  const int64_t heads = backward_heads(problem) - alone;
  BackwardOrder order = {};
  order.alone = alone;
  order.section = section;
  order.tiles = Divisor(std::max(key_tiles, 1));
  order.heads = Divisor(problem.heads / problem.heads_per_key);
  if (section > 0) {
    order.sections = static_cast<int32_t>((heads + section - 1) / section);
    order.blocks = Divisor(std::max<int64_t>(1, int64_t{section} * key_tiles));
    order.width = Divisor(section);
    order.last = Divisor(heads - int64_t{order.sections - 1} * section);
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

/// Lists of a block mask, with ranks of their entries for the deterministic mode.
inline BackwardBlocks launch_backward_blocks(const BackwardCall& call, std::byte* memory,
                                             const BackwardWorkspace& place, int32_t queries,
                                             cudaStream_t stream) {
  const AttentionOptions& options = call.options;
  BackwardBlocks blocks = backward_blocks(call.inputs, options, queries);
  if (options.execution.deterministic) {
    blocks.ranks = reinterpret_cast<int32_t*>(memory + place.ranks);
    const RankLists lists = rank_lists(options.blocks);
    const int64_t columns = options.blocks.column_offsets.shape[2] - 1;
    launch_backward_ranks(blocks, static_cast<int32_t>(columns), lists.batch * lists.heads,
                          lists.heads, reinterpret_cast<int32_t*>(memory + place.counts), stream);
  }
  return blocks;
}

/// Heads worked on together where blocks take turns. A block meets a tile of queries a turn after
/// the one before it, so one head can only start so many blocks a microsecond: with the steps of a
/// block, that gives the heads that keep all multiprocessors busy.
inline int32_t heads_that_take_turns(const BackwardCall& call, const Problem& problem,
                                     int32_t queries) {
  constexpr int64_t kTurn = 2;  // steps from a block's turn to the next block's
  const AttentionOptions& options = call.options;
  int64_t rows = problem.cu_query != nullptr ? problem.total_query / problem.batch
                                             : int64_t{problem.query_length};
  if (options.blocks.rows) {
    const int64_t columns = options.blocks.column_offsets.shape[2] - 1;
    rows = options.blocks.rows.shape[2] / columns * options.blocks.block_rows;
  } else if (options.visibility.right >= 0 && options.visibility.left < 0) {
    rows /= 2;
  } else if (options.visibility.left >= 0 && options.visibility.right >= 0) {
    rows = std::min(rows, options.visibility.left + options.visibility.right + 128);
  }
  const int64_t steps = std::max<int64_t>(1, rows / queries * problem.heads_per_key);
  const int64_t heads = (kTurn * device_multiprocessors() + steps - 1) / steps;
  return heads_side_by_side(backward_heads(problem), 1, 1, heads);
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

template <class Shape>
void launch_backward(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  const AttentionInputs& inputs = call.inputs;
  const AttentionOptions& options = call.options;
  const BackwardWorkspace place = backward_workspace(inputs, call.saved, options, Shape::kQueries,
                                                     Shape::kDim, Shape::kStays ? Shape::kKeys : 0);
  const bool deterministic = options.execution.deterministic;
  constexpr int kLanes = row_lanes(Shape::kDim);
  BackwardRowParams rows = backward_rows(call, place, memory);
  rows.dq_sum = reinterpret_cast<float*>(memory + place.dq);
  rows.sum_floats = Shape::kQueries * Shape::kDim;
  // Claims cost a trip to memory now and then, clearing a pass over the sums.
  constexpr int64_t kClaimedKeys = 4096;
  int64_t keys = rows.problem.key_length;
  if (Shape::kLists && options.blocks.rows) {
    // Of an average row of blocks.
    keys = options.blocks.rows.shape[2] * options.blocks.block_keys /
           ((rows.problem.query_length - 1) / options.blocks.block_rows + 1);
  }
  if (deterministic || keys <= kClaimedKeys) {
    rows.added = reinterpret_cast<int32_t*>(memory + place.added);
  }
  const bool masks = Shape::kLists && options.blocks.rows;
  const bool full = !masks && options.visibility.left < 0 && options.visibility.right < 0;
  const int64_t heads = backward_heads(rows.problem);
  const int64_t work_count = heads * backward_key_tiles(rows.problem, Shape::kKeys);
  const int32_t blocks = multiprocessors(options);
  // Measured for exact widths in the fast mode only.
  constexpr bool kBeside = Shape::kExact && Shape::kTurns == BackwardTurns::never;
  const bool packed = rows.problem.cu_key != nullptr || rows.problem.cu_query != nullptr;
  const int32_t aside =
      kBeside && !packed ? multiprocessors_aside({visible_keys(rows.problem, options), Shape::kDim,
                                                  rows.added == nullptr, Shape::kStays, work_count},
                                                 blocks)
                         : 0;
  if ((full && !Shape::kStays) || masks || (Shape::kStays && aside > 0)) {
    // Blocks are equally long, or end apart as their lists do, so that the last ones leave
    // multiprocessors idle; or blocks that stay leave some free from the start.
    rows.ended = reinterpret_cast<int32_t*>(memory + place.ended);
  }
  BackwardParams params = backward_params(call, rows, Shape::kKeys);
  rows.ends = 2 * params.key_tiles;  // two adders a block
  params.work_count = static_cast<int32_t>(work_count);
  params.staying = std::min(std::max(blocks - aside, 1), params.work_count);
  if (!masks) {
    params.cyclic = !deterministic && full;
  }
  params.circle = device_multiprocessors();
  const bool causal = options.visibility.right >= 0 && options.visibility.left < 0;
  // Where all is visible, blocks of a head begin at the same tile and follow each other closely.
  params.turns_early = causal;
  int32_t section = 0, alone = 0;
  if (deterministic && causal && !options.blocks.rows && rows.problem.heads_per_key == 1) {
    // With several query heads a block, a tile of queries would be met again too late for the cache
    // (0.65 of the rate at 4 heads): 80 KB a step of each of 132 blocks lie between.
    // Of packed sequences no head goes the other way: their order ends with short ones.
    section = rows.problem.cu_key != nullptr ? 0 : heads_in_reverse(heads, params.key_tiles);
    alone = static_cast<int32_t>(heads) - section;
  } else if (deterministic) {
    section = heads_that_take_turns(call, rows.problem, Shape::kQueries);
  } else if (causal && rows.problem.cu_key == nullptr) {
    if constexpr (kBeside) {
      // At 128 columns half a round is best up to 2048 keys without grouped heads, else one; at 64
      // columns two.
      const bool few = rows.problem.key_length <= 2048 && rows.problem.heads_per_key == 1;
      const double rounds = Shape::kDim <= 64 ? 2 : few ? 0.5 : 1;
      section = causal_section(heads, params.key_tiles, blocks, rounds);
    } else {
      const int64_t bytes =
          int64_t{8} * rows.problem.query_length * Shape::kDim * rows.problem.heads_per_key;
      section = heads_side_by_side(heads, bytes, 1, int64_t{32} << 20);
    }
  }
  if (Shape::kStays && section == 0 && rows.problem.cu_key != nullptr) {
    // With one, blocks are idle behind the last long document; more than two gain nothing.
    constexpr int64_t kPackedHeads = 2;
    section = heads_side_by_side(heads, 1, 1, kPackedHeads);
  }
  params.order = backward_order(rows.problem, params.key_tiles, section, alone);
  // Rows of the heads that the first blocks work on come before, the others beside them.
  int64_t first_heads = (params.staying - 1) / params.key_tiles + 1;
  first_heads = section > 0 ? (first_heads + section - 1) / section * section : first_heads;
  const bool beside = aside > 0 && first_heads < heads;
  int64_t first_places = place.places;
  if (beside) {
    first_places = first_heads * rows.problem.heads_per_key * place.query_tiles;
    rows.ready = params.ready = reinterpret_cast<int32_t*>(memory + place.ready);
    params.ready_count = static_cast<int32_t>(rows.problem.heads_per_key * place.query_tiles);
  }
  if constexpr (Shape::kStays) {
    params.works = reinterpret_cast<BackwardWork*>(memory + place.works);
    params.next = reinterpret_cast<int32_t*>(memory + place.next);
    rows.drawn = params.next + 1;
    launch_backward_prepare_staying<kLanes, Shape::kQueries>(rows, params, first_places, stream);
  } else {
    launch_backward_prepare<kLanes, Shape::kQueries>(rows, first_places, stream);
  }
  if constexpr (kBeside) {
    if (beside) {
      const BackwardRowMaps row_maps = {
          cuda::make_tile_map(as_batched(call.saved.out), row_chunk(kLanes)),
          cuda::make_tile_map(as_batched(call.saved.dout), row_chunk(kLanes))};
      launch_backward_prepare_rest<kLanes, Shape::kQueries>(rows, row_maps, first_places,
                                                            place.places, aside, stream);
    }
  }
  if (masks) {
    params.blocks = launch_backward_blocks(call, memory, place, Shape::kQueries, stream);
  }
  BackwardMaps maps = backward_maps<Shape>(inputs, call.saved.dout, Shape::Panels::kColumns);
  params.sends = !params.dk.wide && !params.dv.wide;
  if (params.sends) {
    maps.dk = cuda::make_tile_map(as_batched(call.gradients.dk), 16);
    maps.dv = cuda::make_tile_map(as_batched(call.gradients.dv), 16);
  }
  if constexpr (Shape::kStays) {
    launch_backward_kernel<Shape>(
        &attention_backward_staying_kernel<Shape>, "attention_backward_staying_kernel",
        static_cast<uint32_t>(params.staying), params, maps, true, stream);
  } else {
    launch_backward_kernel<Shape>(&attention_backward_kernel<Shape>, "attention_backward_kernel",
                                  static_cast<uint32_t>(params.key_tiles * heads), params, maps,
                                  true, stream);
  }
  static_assert(Shape::kQueryColumns == sum_columns(Shape::kDim, Shape::kQueries, Shape::kSwapped));
  // Where blocks stay, sums become dq while others are still added to.
  constexpr bool kConverts = Shape::kStays && kBeside;
  const bool converts = kConverts && rows.ended != nullptr && !rows.dq.wide;
  if constexpr (kConverts) {
    if (converts) {
      launch_backward_convert<Shape::kDim, Shape::kQueries, Shape::kSwapped>(rows, place.places,
                                                                             blocks, stream);
    }
  }
  if (!converts) {
    launch_backward_finish<Shape::kDim, Shape::kQueries, Shape::kSwapped>(rows, place.places,
                                                                          stream);
  }
  launch_backward_sinks(rows, Shape::kQueries, stream);
}

}  // namespace flashloom::sm90
