#pragma once

#include <cstddef>

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/sm90/backward_beside.cuh"
#include "flashloom/ops/attention/sm90/backward_call.cuh"
#include "flashloom/ops/attention/sm90/backward_kernel.cuh"
#include "flashloom/ops/attention/sm90/backward_order.cuh"
#include "flashloom/ops/attention/sm90/backward_parts.cuh"
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

/// Launches `blocks` blocks that walk parts of the last tiles of keys of 128 columns.
template <class T>
void launch_backward_parts(const BackwardParams& params, const BackwardMaps& maps, int32_t blocks,
                           cudaStream_t stream);

/// The workspace of a kernel.
template <class Shape>
BackwardWorkspace backward_workspace(const AttentionInputs& inputs, const AttentionSaved& saved,
                                     const AttentionOptions& options) {
  const Problem problem = make_problem(as_batched(inputs.q), as_batched(inputs.k), options);
  return backward_workspace(
      inputs, saved, options, Shape::kQueries, Shape::kDim, Shape::kStays ? Shape::kKeys : 0,
      backward_split<Shape>(problem, options), int64_t{Shape::kKeys} * 2 * Shape::kDim * 4);
}

/// A call to a kernel of sums in memory: what is decided before, then the kernels in their order.
template <class Shape>
struct BackwardLaunch {
  static constexpr int kLanes = row_lanes(Shape::kDim);
  // Whether rows and sums may be worked on beside the tiles. Not measured in kernels for both
  // modes.
  static constexpr bool kBeside =
      (Shape::kExact || Shape::kDim == 96) && Shape::kTurns != BackwardTurns::maybe;
  // Where blocks stay, sums become dq while others are still added to.
  static constexpr bool kConverts = Shape::kStays && kBeside && Shape::kDim != 96;
  static_assert(Shape::kQueryColumns == sum_columns(Shape::kDim, Shape::kQueries, Shape::kSwapped));

  const BackwardCall& call;
  std::byte* const memory;
  const BackwardWorkspace place;
  BackwardRowParams rows;
  BackwardParams params = {};
  const bool deterministic, masks, full;
  const int64_t heads, work_count;  // key-value heads; tiles of keys
  const int32_t blocks;             // that run at a time
  int32_t aside = 0;                // of them, for the kernels beside
  int64_t first_heads = 0;          // whose rows come before the first tiles of keys

  BackwardLaunch(const BackwardCall& own_call, std::byte* own_memory)
      : call(own_call),
        memory(own_memory),
        place(backward_workspace<Shape>(call.inputs, call.saved, call.options)),
        rows(backward_rows(call, place, memory)),
        deterministic(call.options.execution.deterministic),
        masks(Shape::kLists && call.options.blocks.rows),
        full(!masks && call.options.visibility.left < 0 && call.options.visibility.right < 0),
        heads(backward_heads(rows.problem)),
        work_count(heads * backward_key_tiles(rows.problem, Shape::kKeys)),
        blocks(multiprocessors(call.options)) {
    find_sums();
    find_aside();
    find_params();
    order_tiles();
    split_last_tiles();
  }

  void run(cudaStream_t stream) {
    prepare(stream);
    if (masks) {
      params.blocks = launch_backward_blocks(call, memory, place, Shape::kQueries, stream);
    }
    add_up(stream);
    finish(stream);
    launch_backward_sinks(rows, Shape::kQueries, stream);
  }

 private:
  int32_t* numbers(int64_t at) const { return reinterpret_cast<int32_t*>(memory + at); }

  /// Where dQ is added up, and whether whoever comes first stores.
  void find_sums() {
    rows.dq_sum = reinterpret_cast<float*>(memory + place.dq);
    rows.sum_floats = Shape::kQueries * Shape::kDim;
    // Claims cost a trip to memory now and then, clearing a pass over the sums.
    constexpr int64_t kClaimedKeys = 4096;
    auto keys = static_cast<int64_t>(sequence_keys(rows.problem));
    if (masks) {
      // Of an average row of blocks.
      const AttentionBlocks& mask = call.options.blocks;
      keys = mask.rows.shape[2] * mask.block_keys /
             ((rows.problem.query_length - 1) / mask.block_rows + 1);
    }
    if (deterministic || keys <= kClaimedKeys) {
      rows.added = numbers(place.added);
    }
  }

  void find_aside() {
    // Of packed heads that take turns without a mask nearly all are worked on side by side.
    const bool one_section = deterministic && full && rows.problem.cu_key != nullptr;
    if (kBeside && !one_section) {
      aside = multiprocessors_aside({visible_keys(rows.problem, call.options), Shape::kDim,
                                     rows.added == nullptr, Shape::kStays, work_count},
                                    blocks);
    }
    if ((full && !Shape::kStays) || masks || (Shape::kStays && aside > 0)) {
      // Blocks are equally long, or end apart as their lists do, so that the last ones leave
      // multiprocessors idle; or blocks that stay leave some free from the start.
      rows.ended = numbers(place.ended);
    }
  }

  void find_params() {
    const AttentionVisibility& visibility = call.options.visibility;
    params = backward_params(call, rows, Shape::kKeys);
    rows.ends = 2 * params.key_tiles;  // two adders a block
    params.work_count = static_cast<int32_t>(work_count);
    params.staying = std::min(std::max(blocks - aside, 1), params.work_count);
    params.cyclic = !deterministic && full;
    params.circle = device_multiprocessors();
    // Where all is visible, blocks of a head begin at the same tile and follow each other closely.
    params.turns_early = visibility.right >= 0 && visibility.left < 0;
    if constexpr (Shape::kStays) {
      params.works = reinterpret_cast<BackwardWork*>(memory + place.works);
      params.next = numbers(place.next);
      rows.drawn = params.next + 1;
    }
  }

  /// The order of tiles, and by it whose rows come before them and whose beside.
  void order_tiles() {
    const BackwardSections sections = backward_sections<Shape, kBeside>(call, params, blocks);
    const int32_t section = sections.together;
    params.order =
        backward_order(rows.problem, params.key_tiles, section, sections.alone, sections.last);
    first_heads = (params.staying - 1) / params.key_tiles + 1;
    // Packed heads that start with late keys are taken in sections all the same.
    const int64_t alone = rows.problem.cu_key != nullptr ? 0 : sections.alone;
    if (section > 0 && first_heads > alone) {
      first_heads = params.order.sections == 1
                        ? heads
                        : alone + (first_heads - alone + section - 1) / section * section;
    }
    if (aside > 0 && first_heads < heads) {
      rows.ready = params.ready = numbers(place.ready);
      params.ready_count = static_cast<int32_t>(rows.problem.heads_per_key * place.query_tiles);
    }
  }

  /// Parts wait for the rows of their head alone, not for the kernel before, so there are none
  /// where rows are not prepared beside.
  void split_last_tiles() {
    rows.split = rows.ready != nullptr ? backward_split<Shape>(rows.problem, call.options)
                                       : BackwardSplit{params.work_count, 1, 0};
    rows.key_tiles = params.key_tiles;
    rows.part_counts = params.part_counts = numbers(place.part_counts);
    params.part_sums = reinterpret_cast<float*>(memory + place.part_sums);
    params.whole = rows.split.whole;
    params.parts = Divisor(rows.split.parts);
  }

  void prepare(cudaStream_t stream) const {
    const bool beside = rows.ready != nullptr;
    const int64_t first_places =
        beside ? first_heads * rows.problem.heads_per_key * place.query_tiles : place.places;
    if constexpr (Shape::kStays) {
      launch_backward_prepare_staying<kLanes, Shape::kQueries>(rows, params, first_places, stream);
    } else {
      launch_backward_prepare<kLanes, Shape::kQueries>(rows, first_places, stream);
    }
    if constexpr (kBeside) {
      if (beside) {
        const BackwardRowMaps maps = {
            cuda::make_tile_map(as_batched(call.saved.out), row_chunk(kLanes)),
            cuda::make_tile_map(as_batched(call.saved.dout), row_chunk(kLanes))};
        launch_backward_prepare_rest<kLanes, Shape::kQueries>(rows, maps, first_places,
                                                              place.places, aside, stream);
      }
    }
  }

  /// The main kernels: dK, dV and the sums of dQ.
  void add_up(cudaStream_t stream) {
    BackwardMaps maps = backward_maps<Shape>(call.inputs, call.saved.dout, Shape::Panels::kColumns);
    params.sends = !params.dk.wide && !params.dv.wide;
    if (params.sends) {
      maps.dk = cuda::make_tile_map(as_batched(call.gradients.dk), 16);
      maps.dv = cuda::make_tile_map(as_batched(call.gradients.dv), 16);
    }
    if constexpr (Shape::kStays) {
      launch_backward_kernel<Shape>(
          &attention_backward_staying_kernel<Shape>, "attention_backward_staying_kernel",
          static_cast<uint32_t>(params.staying), params, maps, true, stream);
    } else if (params.whole > 0) {
      launch_backward_kernel<Shape>(&attention_backward_kernel<Shape>, "attention_backward_kernel",
                                    static_cast<uint32_t>(params.whole), params, maps, true,
                                    stream);
    }
    if constexpr (Shape::kSplits) {
      const int32_t parts = rows.split.parts * rows.split.tiles;
      if (parts > 0) {
        launch_backward_parts<typename Shape::T>(params, maps, parts, stream);
      }
    }
  }

  /// dq from its sums.
  void finish(cudaStream_t stream) const {
    if constexpr (kConverts) {
      if (rows.ended != nullptr && !rows.dq.wide) {
        launch_backward_convert<Shape::kDim, Shape::kQueries, Shape::kSwapped>(rows, place.places,
                                                                               blocks, stream);
        return;
      }
    }
    launch_backward_finish<Shape::kDim, Shape::kQueries, Shape::kSwapped>(rows, place.places,
                                                                          stream);
  }
};

template <class Shape>
void launch_backward(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  BackwardLaunch<Shape>(call, memory).run(stream);
}

}  // namespace flashloom::sm90
