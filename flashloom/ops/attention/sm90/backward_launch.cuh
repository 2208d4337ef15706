#pragma once

#include <cstddef>

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/sm90/backward_beside.cuh"
#include "flashloom/ops/attention/sm90/backward_call.cuh"
#include "flashloom/ops/attention/sm90/backward_kernel.cuh"
#include "flashloom/ops/attention/sm90/backward_order.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/backward_stay.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

namespace flashloom::sm90 {

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
  auto keys = static_cast<int64_t>(sequence_keys(rows.problem));
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
  // Not measured in kernels for both modes.
  constexpr bool kBeside =
      (Shape::kExact || Shape::kDim == 96) && Shape::kTurns != BackwardTurns::maybe;
  // Of packed heads that take turns without a mask nearly all are worked on side by side.
  const bool one_section = deterministic && full && rows.problem.cu_key != nullptr;
  const int32_t aside =
      kBeside && !one_section
          ? multiprocessors_aside({visible_keys(rows.problem, options), Shape::kDim,
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
  const BackwardSections sections = backward_sections<Shape, kBeside>(call, params, blocks);
  const int32_t section = sections.together;
  params.order =
      backward_order(rows.problem, params.key_tiles, section, sections.alone, sections.last);
  // Rows of the heads that the first blocks work on come before, the others beside them.
  int64_t first_heads = (params.staying - 1) / params.key_tiles + 1;
  // Packed heads that start with late keys are taken in sections all the same.
  const int64_t alone = rows.problem.cu_key != nullptr ? 0 : sections.alone;
  if (section > 0 && first_heads > alone) {
    first_heads = params.order.sections == 1
                      ? heads
                      : alone + (first_heads - alone + section - 1) / section * section;
  }
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
  constexpr bool kConverts = Shape::kStays && kBeside && Shape::kDim != 96;
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
