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

constexpr int32_t kKept = 4 * kThreads;

struct Tiles {
  int32_t rows;        // queries a tile
  int32_t block_rows;  // tiles a row of blocks
  int32_t section;     // tiles of a section
  int32_t walkers;     // that work side by side
  bool bounded;        // lists may name keys that are hidden for another reason
};

/// Keys that a tile of queries walks, at most.
__device__ __forceinline__ int32_t list_length(const ForwardParams& params, const Tiles& tiles,
                                               int32_t index) {
  const Problem& problem = params.problem;
  const ForwardBlocks& blocks = params.rule.blocks;
  const int32_t head = index / params.row_tiles;
  const int32_t tile = index - head * params.row_tiles;
  const int32_t batch = head / problem.heads;
  const int32_t* offsets = blocks.offsets.at(batch, head - batch * problem.heads) +
                           (tiles.block_rows == 1 ? tile : tile / tiles.block_rows);
  const int32_t listed = min(max(__ldg(offsets + 1) - __ldg(offsets), 0), blocks.entry_count);
  int32_t keys = problem.key_length;
  if (tiles.bounded) {
    const Sequence sequence = sequence_of(problem, batch);
    const int32_t first = tile * tiles.rows;
    const int32_t last = min(first + tiles.rows, sequence.query_length) - 1;
    keys = max(sequence.key_end(last) - sequence.key_begin(first), 0);
  }
  return static_cast<int32_t>(min(int64_t{listed} * blocks.block_keys, int64_t{keys}));
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
    forward_order_kernel(const __grid_constant__ ForwardParams params, Tiles tiles,
                         int32_t* order) {
  __shared__ int32_t kept[kKept];       // the first tiles' lengths
  __shared__ int32_t places[kClasses];  // of each class: how many, then where the next one goes
  __shared__ int32_t of_warps[kWarps][4];
  static_assert(kWarps == 32, "a warp adds up what the warps left");
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * tiles.section;
  const int32_t end = min(begin + tiles.section, params.tiles);
  if (blockIdx.x == 0 && thread == 0) {
    *params.counter = 0;
  }
  places[thread] = 0;
  // Each thread looks at every kThreads-th tile.
  int32_t sums[1] = {0};
#pragma unroll 2
  for (int32_t i = thread; i < params.tiles; i += kThreads) {
    const int32_t length = list_length(params, tiles, i);
    sums[0] += length / 64;
    if (i < kKept) {
      kept[i] = length;
    }
  }
  const auto length_of = [&](int32_t i) {
    return i < kKept ? kept[i] : list_length(params, tiles, i);
  };
  block_sums(sums, of_warps);
  // Lists of up to `longest` keys end before their section does, if they begin with it. Longer
  // ones, of all sections, come first.
  const float longest = 64 * static_cast<float>(sums[0]) / static_cast<float>(params.tiles) *
                        static_cast<float>(tiles.section) / static_cast<float>(tiles.walkers);
  const int32_t most = params.problem.key_length;
  const float classes = fminf(1, static_cast<float>(kClasses - 1) / static_cast<float>(most));
  const auto class_of = [&](int32_t length) {
    return static_cast<int32_t>(static_cast<float>(most - length) * classes);
  };
  int32_t longer[3] = {0, 0, 0};  // in the sections before this one, in this one, in all
#pragma unroll 1
  for (int32_t i = thread; i < params.tiles; i += kThreads) {
    const int32_t length = length_of(i);
    const bool own = begin <= i && i < end;
    if (static_cast<float>(length) > longest) {
      longer[0] += i < begin ? 1 : 0;
      longer[1] += own ? 1 : 0;
      ++longer[2];
    }
    if (own) {
      atomicAdd(&places[class_of(length)], 1);
    }
  }
  block_sums(longer, of_warps);
  const auto& [before, own, all] = longer;
  places[thread] = sum_before(places[thread], of_warps);
  __syncthreads();
#pragma unroll 1
  for (int32_t i = begin / kThreads * kThreads + thread; i < end; i += kThreads) {
    if (i >= begin) {
      const int32_t place = atomicAdd(&places[class_of(length_of(i))], 1);
      order[place < own ? before + place : all + begin - before + place - own] = i;
    }
  }
}

}  // namespace

void order_lists(const ForwardParams& params, int32_t rows, int32_t section, int32_t walkers,
                 int32_t* order, cudaStream_t stream) {
  const Problem& problem = params.problem;
  const bool bounded = problem.left < kUnbounded || problem.right < kUnbounded ||
                       problem.used_query != nullptr || problem.used_key != nullptr;
  const Tiles tiles = {rows, params.rule.blocks.block_rows / rows, section * params.row_tiles,
                       walkers, bounded};
  const int32_t blocks = (params.tiles + tiles.section - 1) / tiles.section;
  forward_order_kernel<<<blocks, kThreads, 0, stream>>>(params, tiles, order);
  cuda::check(cudaGetLastError(), "forward_order_kernel");
}

}  // namespace flashloom::sm90
