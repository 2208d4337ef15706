#pragma once

#include <iterator>

#include "flashloom/ops/attention/sm90/backward_beside.cuh"
#include "flashloom/ops/attention/sm90/backward_launch.cuh"
#include "flashloom/ops/attention/sm90/backward_lists.cuh"
#include "flashloom/ops/attention/sm90/backward_lists_order.cuh"

// The launch of the kernel for lists, and the kernels before and after it.

namespace flashloom::sm90 {

inline constexpr int kListThreads = 256;
inline constexpr int kListWarps = kListThreads / 32;
inline constexpr int32_t kMostSortedTiles = 256;

/// Rows and sums of the first heads, all tiles of keys, nothing counted.
template <class Shape>
__global__ void __launch_bounds__(kListThreads)
    attention_backward_lists_prepare_kernel(const __grid_constant__ BackwardListParams params) {
  cuda::let_next_kernel_start();
  const auto thread = static_cast<int32_t>(blockIdx.x * kListThreads + threadIdx.x);
  const auto threads = static_cast<int32_t>(gridDim.x * kListThreads);
  if (thread == 0) {
    *params.next = params.staying;
  }
  if (thread < kPlaceRows) {  // of the place of nothing
    const int64_t row = int64_t{params.jobs} * kPlaceRows + thread;
    params.rows.padded_lse[row] = INFINITY;
    params.rows.delta[row] = 0;
  }
  for (int32_t i = thread; i < params.jobs / params.jobs_a_head; i += threads) {
    params.cleared_jobs[i] = 0;
    params.ended[i] = 0;
    if (params.rows.ready != nullptr) {
      params.rows.ready[i] = 0;
    }
  }
  for (int32_t i = thread; i < params.counts_a_copy * kSumCopies; i += threads) {
    params.added[i] = 0;
  }
  for (int32_t i = thread; i < params.sorted; i += threads) {
    params.works[i] = work_of_lists<Shape>(params, i);
  }
  if (blockIdx.x == 0 && params.lists == 0) {
    // The last ones by the lengths of their lists, so that blocks end together.
    __shared__ int32_t lengths[kMostSortedTiles];
    const int32_t count = params.work_count - params.sorted;
    for (auto i = static_cast<int32_t>(threadIdx.x); i < count; i += kListThreads) {
      lengths[i] = work_of_lists<Shape>(params, params.sorted + i).end;
    }
    __syncthreads();
    for (auto i = static_cast<int32_t>(threadIdx.x); i < count; i += kListThreads) {
      BackwardWork work = work_of_lists<Shape>(params, params.sorted + i);
      int32_t to = params.sorted;
      for (int32_t j = 0; j < count; ++j) {
        to += lengths[j] > work.end || (lengths[j] == work.end && j < i) ? 1 : 0;
      }
      work.first = to;
      params.works[to] = work;
    }
  }
  const auto job = static_cast<int32_t>(blockIdx.x);
  if (job < params.cleared) {
    clear_sums<Shape::kDim>(params, job, static_cast<int32_t>(threadIdx.x), kListThreads);
  }
  if constexpr (Shape::kTurns == BackwardTurns::always) {
    if (job >= params.prepared && threadIdx.x < 32) {
      order_entries<Shape>(params, job - params.prepared);
    }
  }
  if (job < params.prepared) {
    prepare_job<typename Shape::T, Shape::kDim, kListWarps>(params, job,
                                                            static_cast<int32_t>(threadIdx.x / 32));
  }
}

/// dq from its sums. A head's are converted as soon as all its tiles of keys are done, while others
/// still run, on multiprocessors that are left to it; one block waits for the end of the kernel
/// before all the same, so that whoever waits for this one has waited for that one.
template <class Shape>
__global__ void __launch_bounds__(kListThreads)
    attention_backward_lists_finish_kernel(const __grid_constant__ BackwardListParams params) {
  const auto job = static_cast<int32_t>(blockIdx.x);
  if (blockIdx.x == gridDim.x - 1) {
    cuda::wait_for_earlier_kernel();
  } else {
    if (threadIdx.x == 0) {
      wait_for_count(params.ended + job / params.jobs_a_head, params.rows.ends,
                     params.problem.status);
    }
    __syncthreads();
  }
  finish_job<typename Shape::T, Shape::kDim, kListWarps, Shape::kTurns == BackwardTurns::always>(
      params, job, static_cast<int32_t>(threadIdx.x / 32));
}

struct BackwardListWorkspace {
  int64_t lse, delta, dq, cleared, ended, ready, next, works, added, turns, room, end;
};

/// Places of a query head: those of whole blocks.
inline int32_t list_query_tiles(const Problem& problem, const AttentionOptions& options) {
  const auto block = static_cast<int32_t>(options.blocks.block_rows);
  return (problem.query_length - 1) / block * (block / kPlaceRows) + block / kPlaceRows;
}

/// Numbers that say whose turn it is: one a piece and warpgroup, at 64 columns a tile and
/// warpgroup.
inline int64_t list_turns(const Problem& problem, int64_t query_tiles, int64_t dim) {
  return int64_t{problem.batch} * problem.heads * query_tiles * 2 * (dim > 64 ? kPlacePieces : 1);
}

/// For heads of `dim` columns.
inline BackwardListWorkspace backward_list_workspace(const AttentionInputs& inputs,
                                                     const AttentionOptions& options, int64_t dim) {
  const Problem problem = make_problem(as_batched(inputs.q), as_batched(inputs.k), options);
  const int64_t tiles = list_query_tiles(problem, options);
  const int64_t rows = int64_t{problem.batch} * problem.heads * tiles * kPlaceRows;
  const int64_t heads = backward_heads(problem);
  const auto aligned = [](int64_t bytes) { return (bytes + 127) / 128 * 128; };
  BackwardListWorkspace place = {};
  place.delta = place.lse + (rows + kPlaceRows) * 4;
  place.dq = place.delta + (rows + kPlaceRows) * 4;
  place.cleared = place.dq + rows * dim * 4 * kSumCopies;
  place.ended = place.cleared + aligned(heads * 4);
  place.ready = place.ended + aligned(heads * 4);
  place.next = place.ready + aligned(heads * 4);
  place.works = place.next + 128;
  place.added = place.works + aligned(backward_key_tiles(problem, 128) * heads *
                                      static_cast<int64_t>(sizeof(BackwardWork)));
  place.turns = place.added + aligned(list_turns(problem, tiles, dim) * 4 * kSumCopies);
  const RankLists lists = rank_lists(options.blocks);
  const int64_t count = int64_t{lists.batch} * lists.heads;
  const int64_t block_rows = (problem.query_length - 1) / options.blocks.block_rows + 1;
  place.room = place.turns +
               aligned(count * options.blocks.rows.shape[2] * static_cast<int64_t>(sizeof(int4)));
  place.end = place.room + aligned(count * block_rows * 4);
  return place;
}

/// Keys that an average query sees.
inline double listed_keys(const Problem& problem, const BackwardBlocks& blocks) {
  return static_cast<double>(blocks.entry_count) / blocks.row_count * blocks.keys;
}

/// Tiles of keys that come by their lengths, at the end: some, so that blocks end together, but of
/// few heads, whose sums are turned into dq last.
inline int32_t sorted_tiles(int32_t key_tiles) {
  constexpr int32_t kSome = 96;
  return std::min(std::max(key_tiles, kSome), kMostSortedTiles);
}

/// Key-value heads that are worked on side by side in turn: the more, the less blocks wait for each
/// other, but what they work on must stay in the L2 cache. The bits depend on it.
inline int32_t list_section(const Problem& problem, int64_t dim) {
  constexpr int64_t kElements = 1 << 21;  // of dQ
  const int64_t head = int64_t{problem.query_length} * dim * problem.heads_per_key;
  return static_cast<int32_t>(
      std::clamp<int64_t>(kElements / std::max<int64_t>(head, 1), 1, backward_heads(problem)));
}

template <class Shape>
void launch_lists(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  const AttentionInputs& inputs = call.inputs;
  const BackwardListWorkspace place = backward_list_workspace(inputs, call.options, Shape::kDim);
  BackwardRowParams rows = backward_rows(call, {}, memory);
  rows.padded_lse = reinterpret_cast<float*>(memory + place.lse);
  rows.delta = reinterpret_cast<float*>(memory + place.delta);
  rows.query_tiles = list_query_tiles(rows.problem, call.options);
  rows.tiles = Divisor(rows.query_tiles);
  rows.dq_sum = reinterpret_cast<float*>(memory + place.dq);
  rows.ended = reinterpret_cast<int32_t*>(memory + place.ended);
  constexpr bool kInTurn = Shape::kTurns == BackwardTurns::always;
  const BackwardBlocks blocks = backward_blocks(inputs, call.options, kPieceRows);
  BackwardListParams params = {backward_params(call, rows, Shape::kKeys)};
  const auto heads = static_cast<int32_t>(backward_heads(rows.problem));
  rows.ends = (kInTurn ? 2 : 1) * params.key_tiles;
  const int32_t all = multiprocessors(call.options);
  params.work_count = params.key_tiles * heads;
  // Rows of heads to come are prepared, and sums of heads that are done turned into dq, by a few
  // multiprocessors that are left to that. Few tiles of keys have their rows before, and three for
  // the sums: density 0.3 of 2048 keys at 128 columns 274 TFLOP/s beside 270 with none (lists18).
  constexpr int32_t kForSums = 3;
  int32_t aside = multiprocessors_aside(
      {listed_keys(rows.problem, blocks), Shape::kDim, false, true, params.work_count}, all);
  const bool beside = aside > 0;
  if (!beside && all > 16 * kForSums) {
    aside = kForSums;
  }
  params.staying = std::min(std::max(all - aside, 1), params.work_count);
  params.jobs_a_head = rows.query_tiles * rows.problem.heads_per_key;
  params.jobs = params.jobs_a_head * heads;
  // Rows of the heads that the first blocks work on come before, the others beside them.
  int32_t first_heads = (params.staying - 1) / params.key_tiles + 1;
  const int32_t section = list_section(rows.problem, Shape::kDim);
  if constexpr (kInTurn) {
    params.order = backward_order(rows.problem, params.key_tiles, section);
    first_heads =
        params.order.sections == 1 ? heads : (first_heads + section - 1) / section * section;
    const RankLists lists = rank_lists(call.options.blocks);
    params.turns = reinterpret_cast<int4*>(memory + place.turns);
    params.room = reinterpret_cast<int32_t*>(memory + place.room);
    params.added = reinterpret_cast<int32_t*>(memory + place.added);
    params.counts_a_copy =
        static_cast<int32_t>(list_turns(rows.problem, rows.query_tiles, Shape::kDim));
    params.lists = lists.batch * lists.heads;
    params.lists_a_batch = lists.heads;
  }
  params.prepared = params.jobs;
  if (beside && first_heads < heads) {
    params.prepared = first_heads * params.jobs_a_head;
    rows.ready = params.ready = reinterpret_cast<int32_t*>(memory + place.ready);
    params.ready_count = params.jobs_a_head;
  }
  params.blocks = blocks;
  params.cleared_jobs = reinterpret_cast<int32_t*>(memory + place.cleared);
  params.works = reinterpret_cast<BackwardWork*>(memory + place.works);
  params.next = reinterpret_cast<int32_t*>(memory + place.next);
  params.rows = rows;
  params.sends = true;
  if constexpr (kInTurn) {
    // Where a head has a list of its own and its tiles are that list's columns. Blocks find their
    // first tiles themselves.
    constexpr int32_t kBlocks = 132;  // whatever the device: another order has other bits
    const int32_t last = (params.order.sections - 1) * section * params.key_tiles;
    const bool sorts = rows.problem.heads_per_key == 1 && params.lists == heads &&
                       blocks.keys == Shape::kKeys && is_ordered(blocks, params.key_tiles) &&
                       last >= kBlocks;
    params.staying = sorts ? std::min(params.staying, last) : params.staying;
    params.sorted = sorts ? last : params.work_count;
  } else {
    params.sorted = std::max(params.staying, params.work_count - sorted_tiles(params.key_tiles));
    // A head's sums must be cleared when its first tile of keys comes, those of heads whose tiles
    // are sorted when the first of these does. Tiles clear twice as many as they need, so that the
    // kernel before has few to clear: those of the first heads and one more, by when each tile is
    // ahead.
    params.jobs_a_tile = 2 * ((params.jobs + params.work_count - 1) / params.work_count);
    params.cleared = std::min(
        params.jobs, std::max((first_heads + 1) * params.jobs_a_head,
                              params.jobs - params.jobs_a_tile * (params.sorted - params.staying)));
  }
  const int32_t prepare_blocks =
      kInTurn ? params.prepared + params.lists : std::max(params.prepared, params.cleared);

  attention_backward_lists_prepare_kernel<Shape>
      <<<static_cast<uint32_t>(prepare_blocks), kListThreads, kInTurn ? sizeof(ListOrder) : 0,
         stream>>>(params);
  cuda::check(cudaGetLastError(), "attention_backward_lists_prepare_kernel");
  if (params.prepared < params.jobs) {
    constexpr int kLanes = row_lanes(Shape::kDim);
    const BackwardRowMaps row_maps = {
        cuda::make_tile_map(as_batched(call.saved.out), row_chunk(kLanes)),
        cuda::make_tile_map(as_batched(call.saved.dout), row_chunk(kLanes))};
    BackwardRowParams rest = rows;
    rest.dq_sum = nullptr;  // cleared beside the tiles of keys
    launch_backward_prepare_rest<kLanes, kPlaceRows>(rest, row_maps, params.prepared, params.jobs,
                                                     aside, stream);
  }
  BackwardListMaps maps = {backward_maps<Shape>(inputs, call.saved.dout)};
  maps.dk = cuda::make_tile_map(as_batched(call.gradients.dk), 16);
  maps.dv = cuda::make_tile_map(as_batched(call.gradients.dv), 16);
  for (uint32_t i = 0; i < std::size(maps.q_pieces); ++i) {
    const uint32_t rows_of_box = Shape::kQueries == 80 ? (i + 1) * kPieceRows : Shape::kQueries;
    maps.q_pieces[i] = cuda::make_tile_map(as_batched(inputs.q), rows_of_box);
    maps.dout_pieces[i] = cuda::make_tile_map(as_batched(call.saved.dout), rows_of_box);
  }
  launch_backward_kernel<Shape>(&attention_backward_lists_kernel<Shape>,
                                "attention_backward_lists_kernel",
                                static_cast<uint32_t>(params.staying), params, maps, true, stream);
  cuda::launch_overlapping(&attention_backward_lists_finish_kernel<Shape>,
                           "attention_backward_lists_finish_kernel",
                           static_cast<uint32_t>(params.jobs), kListThreads, 0, stream, params);
  launch_backward_sinks(rows, kPlaceRows, stream);
}

}  // namespace flashloom::sm90
