#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/sm90/forward_launch.cuh"
#include "flashloom/ops/attention/sm90/forward_schedule.cuh"

// The order in which the tiles of queries of a block mask are worked on: lists differ in length,
// and a long one begun last would leave the other multiprocessors idle.
//
//   [tiles too long for their section] [section 0, long lists first] [section 1, ...] ...

namespace flashloom::sm90 {
namespace {

constexpr int32_t kThreads = 1024;  // of a block; sections have about half as many tiles
constexpr int32_t kWarps = kThreads / 32;
constexpr int32_t kClasses = kThreads;

struct TileSizes {
  int32_t rows, keys;  // queries a tile, keys a tile of keys
  int32_t section;     // tiles
  int32_t walkers;     // that work side by side
};

/// Tiles of keys that a tile of queries walks, at most.
__device__ int32_t list_length(const ForwardParams& params, const TileSizes& sizes, int32_t index) {
  const ForwardTile tile = batched_tile(params, index, sizes.rows);
  const KeyTiles range =
      key_tiles(sequence_of(params.problem, tile.batch), tile.row, sizes.rows, sizes.keys);
  const ForwardBlocks& blocks = params.rule.blocks;
  const int32_t* offsets = blocks.offsets.at(tile.batch, tile.head) + tile.row / blocks.block_rows;
  const int32_t listed = min(max(offsets[1] - offsets[0], 0), blocks.entry_count);
  return static_cast<int32_t>(
      min(int64_t{listed} * (blocks.block_keys / sizes.keys), int64_t{range.end - range.begin}));
}

/// The sums of all threads' values, in all threads. Every thread must call it.
template <int kValues>
__device__ void block_sums(int32_t (&values)[kValues], int32_t (&of_warps)[kWarps][4]) {
  static_assert(kValues <= 4);
  __syncthreads();  // the last sums have been read
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    values[i] = __reduce_add_sync(0xffffffffu, values[i]);
    if (threadIdx.x % 32 == 0) {
      of_warps[threadIdx.x / 32][i] = values[i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    values[i] = __reduce_add_sync(0xffffffffu, of_warps[threadIdx.x % 32][i]);
  }
}

/// The sum of the values of the threads before this one. Every thread must call it.
__device__ int32_t sum_before(int32_t value, int32_t (&of_warps)[kWarps][4]) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  int32_t sum = value;
#pragma unroll
  for (int32_t step = 1; step < 32; step *= 2) {
    const int32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    sum += lane >= step ? other : 0;
  }
  __syncthreads();  // as above
  if (lane == 31) {
    of_warps[threadIdx.x / 32][0] = sum;
  }
  __syncthreads();
  const int32_t before = lane < static_cast<int32_t>(threadIdx.x / 32) ? of_warps[lane][0] : 0;
  return __reduce_add_sync(0xffffffffu, before) + sum - value;
}

/// Each block orders the tiles of one section by counting those of each length.
__global__ void __launch_bounds__(kThreads)
    forward_order_kernel(const __grid_constant__ ForwardParams params, TileSizes sizes,
                         int32_t* order) {
  __shared__ int32_t places[kClasses];  // of each class: how many, then where the next one goes
  __shared__ int32_t of_warps[kWarps][4];
  static_assert(kWarps == 32, "a warp adds up what the warps left");
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * sizes.section;
  const int32_t end = min(begin + sizes.section, params.tiles);
  if (blockIdx.x == 0 && thread == 0) {
    *params.counter = 0;
  }
  places[thread] = 0;
  // Each thread looks at every kThreads-th tile; the first ones' lists stay in registers.
  constexpr int kKept = 4;
  int32_t kept[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int32_t i = j * kThreads + thread;
    kept[j] = i < params.tiles ? list_length(params, sizes, i) : 0;
  }
  // Calls visit(i, its list's length) for this thread's tiles in [from, to).
  const auto each = [&](int32_t from, int32_t to, const auto& visit) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int32_t i = j * kThreads + thread;
      if (from <= i && i < to) {
        visit(i, kept[j]);
      }
    }
    const int32_t first = max(kKept * kThreads, from / kThreads * kThreads) + thread;
    for (int32_t i = first; i < to; i += kThreads) {
      if (from <= i) {
        visit(i, list_length(params, sizes, i));
      }
    }
  };
  int32_t sums[1] = {0};
  each(0, params.tiles, [&](int32_t, int32_t length) { sums[0] += length; });
  block_sums(sums, of_warps);
  // Lists of up to `longest` end before their section does, if they begin with it. Longer ones, of
  // all sections, come first.
  const float longest = static_cast<float>(sums[0]) / static_cast<float>(params.tiles) *
                        static_cast<float>(sizes.section) / static_cast<float>(sizes.walkers);
  const int64_t most = (params.problem.key_length + sizes.keys - 1) / sizes.keys;
  const auto class_of = [&](int32_t length) {
    const int64_t rest = max(most - length, int64_t{0});
    return static_cast<int32_t>(most < kClasses ? rest : rest * (kClasses - 1) / most);
  };
  int32_t longer[3] = {0, 0, 0};  // in the sections before this one, in this one, in all
  each(0, params.tiles, [&](int32_t i, int32_t length) {
    const bool is_longer = static_cast<float>(length) > longest;
    longer[0] += is_longer && i < begin ? 1 : 0;
    longer[1] += is_longer && i >= begin && i < end ? 1 : 0;
    longer[2] += is_longer ? 1 : 0;
  });
  each(begin, end, [&](int32_t, int32_t length) { atomicAdd(&places[class_of(length)], 1); });
  block_sums(longer, of_warps);
  const auto& [before, own, all] = longer;
  places[thread] = sum_before(places[thread], of_warps);
  __syncthreads();
  each(begin, end, [&](int32_t i, int32_t length) {
    const int32_t place = atomicAdd(&places[class_of(length)], 1);
    order[place < own ? before + place : all + begin - before + place - own] = i;
  });
}

}  // namespace

void order_lists(const ForwardParams& params, int32_t rows, int32_t keys, int32_t section,
                 int32_t walkers, int32_t* order, cudaStream_t stream) {
  const TileSizes sizes = {rows, keys, section * params.row_tiles, walkers};
  const int32_t blocks = (params.tiles + sizes.section - 1) / sizes.section;
  forward_order_kernel<<<blocks, kThreads, 0, stream>>>(params, sizes, order);
  cuda::check(cudaGetLastError(), "forward_order_kernel");
}

}  // namespace flashloom::sm90
