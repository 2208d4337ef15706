#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/launch.cuh"
#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/sm90/backward_counts.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_row_tile.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/backward_schedule.cuh"
#include "flashloom/ops/attention/sm90/backward_works.cuh"

namespace flashloom::sm90 {
namespace {

constexpr int kThreads = 256;  // of a block

/// Those of packed sequences count once.
__device__ __forceinline__ int32_t key_value_heads(const Problem& problem) {
  return (problem.cu_query != nullptr ? 1 : problem.batch) * problem.heads / problem.heads_per_key;
}

/// Waits until the sums of a tile's head are complete: where the last blocks of the kernel before
/// leave multiprocessors idle, other heads can be done meanwhile. One block waits for that kernel's
/// end all the same, so that whoever waits for this one has waited for that one.
__device__ __forceinline__ void wait_for_sums(const BackwardRowParams& params,
                                              const RowTile& tile) {
  if (params.ended == nullptr || blockIdx.x == gridDim.x - 1) {
    cuda::wait_for_earlier_kernel();
    return;
  }
  if (threadIdx.x == 0) {
    const Problem& problem = params.problem;
    const int32_t head = (problem.cu_query != nullptr ? 0 : tile.batch * problem.heads) + tile.head;
    wait_for_count(params.ended + head / problem.heads_per_key, params.ends, problem.status);
  }
  __syncthreads();
}

/// delta = sum(dout * out) - dlse and lse in powers of two, in rows padded to whole tiles; nothing
/// has been added to dQ. A block a place. `ended`: adders of a head that will never be.
template <int kLanes, int kQueries>
__device__ __forceinline__ void prepare_rows(const BackwardRowParams& params, int32_t ended = 0) {
  cuda::let_next_kernel_start();
  if (threadIdx.x == 0) {
    for (auto i = static_cast<int32_t>(blockIdx.x); i < key_value_heads(params.problem);
         i += static_cast<int32_t>(gridDim.x)) {
      if (params.ended != nullptr) {
        // A split tile has more adders.
        const int32_t split =
            (i + 1) * params.key_tiles - max(i * params.key_tiles, params.split.whole);
        params.ended[i] = ended - 2 * (params.split.parts - 1) * max(split, 0);
      }
      if (params.ready != nullptr) {
        params.ready[i] = 0;
      }
    }
    for (auto i = static_cast<int32_t>(blockIdx.x); i < 2 * params.split.tiles;
         i += static_cast<int32_t>(gridDim.x)) {
      params.part_counts[i] = 0;
    }
  }
  const RowTile tile = row_tile(params, static_cast<int32_t>(blockIdx.x), kQueries);
  if (tile.first >= tile.sequence.query_rows) {
    return;
  }
  const int64_t batch = params.problem.cu_query != nullptr ? 0 : tile.batch;
  if (params.added != nullptr && threadIdx.x < 2) {
    params.added[2 * tile.place + threadIdx.x] = 0;
  }
  if (params.dq_sum != nullptr && params.added == nullptr) {
    auto* sums = reinterpret_cast<float4*>(params.dq_sum + tile.place * params.sum_floats);
#pragma unroll 2
    for (auto i = static_cast<int32_t>(threadIdx.x); i < params.sum_floats / 4; i += kThreads) {
      sums[i] = make_float4(0, 0, 0, 0);
    }
  }
  const auto lane = static_cast<int32_t>(threadIdx.x % kLanes);
#pragma unroll
  for (int first = 0; first < kQueries; first += kThreads / kLanes) {
    const int32_t own = first + static_cast<int32_t>(threadIdx.x / kLanes);
    const int32_t query = tile.first + own;
    const int64_t row = tile.sequence.query_first + query;
    const bool exists = query < tile.sequence.query_length;
    float sum = 0;
    if (exists && 8 * lane < params.value_columns) {
      const uint4 a = *reinterpret_cast<const uint4*>(
          params.out.at<uint16_t>(batch, tile.head, row) + 8 * lane);
      const uint4 b = *reinterpret_cast<const uint4*>(
          params.dout.at<uint16_t>(batch, tile.head, row) + 8 * lane);
      sum = params.half ? row_product<__half>(a, b) : row_product<__nv_bfloat16>(a, b);
    }
    // In this order backward_beside.cu adds up too: a row's number must not depend on who does it.
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (lane == 0 && own < kQueries) {
      float lse = INFINITY;
      float dentropy = 0;
      if (exists) {
        lse = *params.lse.at<const float>(batch, tile.head, row) * kLog2e;
        lse = lse == -INFINITY ? INFINITY : lse;
        if (params.dlse.data != nullptr) {
          sum -= *params.dlse.at<const float>(batch, tile.head, row);
        }
        if (params.padded_dentropy != nullptr && lse != INFINITY) {
          dentropy = *params.dentropy.at<const float>(batch, tile.head, row);
          sum += dentropy * *params.entropy.at<const float>(batch, tile.head, row);
        }
      }
      params.padded_lse[tile.place * kQueries + own] = lse;
      params.delta[tile.place * kQueries + own] = sum;
      if (params.padded_dentropy != nullptr) {
        params.padded_dentropy[tile.place * kQueries + own] = dentropy;
      }
    }
  }
}

template <int kLanes, int kQueries>
__global__ void __launch_bounds__(kThreads)
    attention_backward_prepare_kernel(const __grid_constant__ BackwardRowParams params) {
  prepare_rows<kLanes, kQueries>(params);
}

/// What the work of a block depends on where blocks stay.
template <int kQueries_>
struct StayingShape {
  static constexpr int32_t kKeys = 128;
  static constexpr int32_t kQueries = kQueries_;
  static constexpr bool kLists = false;
  static constexpr BackwardTurns kTurns = BackwardTurns::maybe;
};

template <int kLanes, int kQueries>
__global__ void __launch_bounds__(kThreads)
    attention_backward_prepare_staying_kernel(const __grid_constant__ BackwardRowParams params,
                                              const __grid_constant__ BackwardParams next) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    next.next[0] = next.staying;
    next.next[1] = 0;
  }
  // One a warp, whose lanes look for its sequence together.
  const auto warp = static_cast<int32_t>(blockIdx.x + threadIdx.x / 32 * gridDim.x);
  for (int32_t i = warp; i < next.work_count;
       i += static_cast<int32_t>(gridDim.x) * kThreads / 32) {
    write_work<StayingShape<kQueries>>(next, i);
  }
  int32_t missing = 0;
  if (params.ended != nullptr && threadIdx.x < 32 &&
      static_cast<int32_t>(blockIdx.x) < key_value_heads(params.problem)) {
    missing = missing_tiles<StayingShape<kQueries>>(next);
  }
  prepare_rows<kLanes, kQueries>(params, 2 * missing);
}

/// dq of a place from sums that are half of the columns a warpgroup or transposed: they take the
/// order of rows in shared memory.
template <int kDim, int kQueries, bool kSwapped, int kVectors>
__device__ __forceinline__ void store_turned(const BackwardRowParams& params, const RowTile& tile,
                                             int64_t batch, const float4 (&sum)[kVectors], bool any,
                                             int vectors) {
  const uint32_t group = threadIdx.x / 128;
  const uint32_t row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const uint32_t column = 2 * (threadIdx.x % 4);
  constexpr int kPitch = kDim + 4;  // rows of a column in other banks
  __shared__ float rows[kQueries * kPitch];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float values[4] = {any ? sum[i].x : 0, any ? sum[i].y : 0, any ? sum[i].z : 0,
                             any ? sum[i].w : 0};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t r = row + 8 * (e / 2);
      const uint32_t c = column + 8 * i + e % 2;
      const uint32_t shift = group * (kDim == 64 && kSwapped ? kQueries / 2 : 64);
      const uint32_t query = (kSwapped ? c : r) + (kDim == 64 ? shift : 0);
      const uint32_t dim = (kSwapped ? r : c) + (kDim > 64 ? shift : 0);
      if (i < vectors) {
        rows[query * kPitch + dim] = values[e] * params.scale;
      }
    }
  }
  __syncthreads();
  constexpr uint32_t kChunks = kDim / 8;
  for (uint32_t i = threadIdx.x; i < kQueries * kChunks; i += kThreads) {
    const uint32_t own = i / kChunks;
    const uint32_t first = 8 * (i % kChunks);
    const int32_t query = tile.first + static_cast<int32_t>(own);
    if (query >= tile.sequence.query_rows) {
      break;
    }
    if (static_cast<int32_t>(first) >= params.columns) {
      continue;
    }
    const float* from = rows + own * kPitch + first;
    // Rows that are stored but not used may hold the sums of nothing only.
    const int64_t to = tile.sequence.query_first + query;
    if (params.dq.wide) {
      float* place = params.dq.at<float>(batch, tile.head, to) + first;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        place[e] = params.accumulate ? place[e] + from[e] : from[e];
      }
      continue;
    }
    uint32_t words[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      words[e] = params.half ? cuda::pack2<__half>(from[2 * e], from[2 * e + 1])
                             : cuda::pack2<__nv_bfloat16>(from[2 * e], from[2 * e + 1]);
    }
    *reinterpret_cast<uint4*>(params.dq.at<uint16_t>(batch, tile.head, to) + first) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

/// dq = scale * sums. They lie in the order of accumulator fragments, one part a warpgroup of the
/// backward kernel. A block a place.
template <int kDim, int kQueries, bool kSwapped>
__global__ void __launch_bounds__(kThreads)
    attention_backward_finish_kernel(const __grid_constant__ BackwardRowParams params) {
  // The last sums first, which the cache still holds, unless heads are waited for one by one.
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t index =
      params.ended != nullptr ? block : static_cast<int32_t>(gridDim.x) - 1 - block;
  const RowTile tile = row_tile(params, index, kQueries);
  wait_for_sums(params, tile);
  if (tile.first >= tile.sequence.query_rows) {
    return;
  }
  const int64_t batch = params.problem.cu_query != nullptr ? 0 : tile.batch;
  const uint32_t group = threadIdx.x / 128;
  constexpr int kVectors = sum_columns(kDim, kQueries, kSwapped) / 8;
  static_assert(kDim != 96 || kSwapped);
  const bool half = kDim == 96 && group == 1;  // 32 rows, of 64 threads
  const int threads = half ? 64 : 128;
  const int vectors = half && threadIdx.x % 128 >= 64 ? 0 : kVectors;
  const auto* sums = reinterpret_cast<const float4*>(params.dq_sum + tile.place * kQueries * kDim) +
                     group * kVectors * 128 + threadIdx.x % 128;
  // Whoever comes first stores its part; nobody may have.
  const bool any = params.added == nullptr || params.added[2 * tile.place + group] != 0;
  float4 sum[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    // Whatever there is, at once: to know whether it counts is a trip to memory too.
    sum[i] = i < vectors ? __ldcg(sums + threads * i) : make_float4(0, 0, 0, 0);
  }
  if constexpr (!kSwapped && kDim == 64) {
    // Rows lie as those of dk and dv do.
    float values[4 * kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      values[4 * i] = sum[i].x;
      values[4 * i + 1] = sum[i].y;
      values[4 * i + 2] = sum[i].z;
      values[4 * i + 3] = sum[i].w;
    }
    const uint32_t lane = threadIdx.x % 32;
    const int32_t first = tile.first + static_cast<int32_t>(threadIdx.x / 32 * 16 + lane / 4);
    const int32_t stored = tile.sequence.query_rows;
    auto store = [&]<class T>(T /*storage*/) {
      store_rows<T, kDim>(values, params.scale, params.dq, batch, tile.head,
                          tile.sequence.query_first, first, any ? stored : 0, stored,
                          params.accumulate, true, params.columns, lane);
    };
    if (params.half) {
      store(__half());
    } else {
      store(__nv_bfloat16());
    }
  } else {
    store_turned<kDim, kQueries, kSwapped>(params, tile, batch, sum, any, vectors);
  }
}

/// dsinks = -sum of exp(sink - lse) delta over the rows of a head, in a fixed order: the sink is a
/// key of value 0. A block a query head.
__global__ void __launch_bounds__(kThreads)
    attention_backward_sinks_kernel(const __grid_constant__ BackwardRowParams params,
                                    int32_t queries) {
  __shared__ float warps[kThreads / 32];
  const auto head = static_cast<int32_t>(blockIdx.x);
  const float sink = params.sinks[head * params.sinks_stride] * kLog2e;
  float sum = 0;
  for (int32_t batch = 0; batch < params.problem.batch; ++batch) {
    const Sequence sequence = sequence_of(params.problem, batch);
    const int64_t first =
        first_place(params.problem, sequence, batch, head, params.query_tiles, queries) * queries;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < sequence.query_length; i += kThreads) {
      const float distance = sink - params.padded_lse[first + i];
      const float p = cuda::exp2_fast(distance);
      sum -= p * params.delta[first + i];
      if (params.padded_dentropy != nullptr && p > 0) {
        sum -= p * params.padded_dentropy[first + i] * (distance / kLog2e);
      }
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
  }
  if (threadIdx.x % 32 == 0) {
    warps[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (const float part : warps) {
      total += part;
    }
    float& place = params.dsinks[head * params.dsinks_stride];
    place = params.accumulate ? place + total : total;
  }
}

/// How many blocks of each row's list come before each entry of the transposed lists, in the order
/// of columns. One block a list; `counts` takes one number a row and list.
__global__ void __launch_bounds__(kThreads)
    attention_backward_ranks_kernel(const __grid_constant__ BackwardBlocks blocks, int32_t columns,
                                    int32_t heads, int32_t* counts) {
  const auto list = static_cast<int32_t>(blockIdx.x);
  const int32_t batch = list / heads;
  const int32_t head = list % heads;
  int32_t* count = counts + int64_t{list} * blocks.row_count;
  int32_t* ranks = blocks.ranks + int64_t{list} * blocks.entry_count;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < blocks.row_count; i += kThreads) {
    count[i] = 0;
  }
  __syncthreads();
  const int32_t* offsets = blocks.offsets.at(batch, head);
  const int32_t* rows = blocks.rows.at(batch, head);
  for (int32_t column = 0; column < columns; ++column) {
    const int32_t first = min(max(offsets[column], 0), blocks.entry_count);
    const int32_t end = max(first, min(offsets[column + 1], blocks.entry_count));
    for (int32_t i = first + static_cast<int32_t>(threadIdx.x); i < end; i += kThreads) {
      ranks[i] = atomicAdd(&count[min(max(rows[i], 0), blocks.row_count - 1)], 1);
    }
    __syncthreads();
  }
}

}  // namespace

template <int kLanes, int kQueries>
void launch_backward_prepare(const BackwardRowParams& rows, int64_t places, cudaStream_t stream) {
  attention_backward_prepare_kernel<kLanes, kQueries>
      <<<static_cast<uint32_t>(places), kThreads, 0, stream>>>(rows);
  cuda::check(cudaGetLastError(), "attention_backward_prepare_kernel");
}

// Rows of up to 64, 128, 256 columns.
template void launch_backward_prepare<8, 64>(const BackwardRowParams&, int64_t, cudaStream_t);
template void launch_backward_prepare<8, 128>(const BackwardRowParams&, int64_t, cudaStream_t);
template void launch_backward_prepare<16, 64>(const BackwardRowParams&, int64_t, cudaStream_t);
template void launch_backward_prepare<16, 80>(const BackwardRowParams&, int64_t, cudaStream_t);
template void launch_backward_prepare<32, 64>(const BackwardRowParams&, int64_t, cudaStream_t);

template <int kLanes, int kQueries>
void launch_backward_prepare_staying(const BackwardRowParams& rows, const BackwardParams& next,
                                     int64_t places, cudaStream_t stream) {
  attention_backward_prepare_staying_kernel<kLanes, kQueries>
      <<<static_cast<uint32_t>(places), kThreads, 0, stream>>>(rows, next);
  cuda::check(cudaGetLastError(), "attention_backward_prepare_staying_kernel");
}

template void launch_backward_prepare_staying<8, 128>(const BackwardRowParams&,
                                                      const BackwardParams&, int64_t, cudaStream_t);
template void launch_backward_prepare_staying<16, 80>(const BackwardRowParams&,
                                                      const BackwardParams&, int64_t, cudaStream_t);
template void launch_backward_prepare_staying<16, 96>(const BackwardRowParams&,
                                                      const BackwardParams&, int64_t, cudaStream_t);

template <int kColumns, int kQueries, bool kSwapped>
void launch_backward_finish(const BackwardRowParams& rows, int64_t places, cudaStream_t stream) {
  cuda::launch_overlapping(&attention_backward_finish_kernel<kColumns, kQueries, kSwapped>,
                           "attention_backward_finish_kernel", static_cast<uint32_t>(places),
                           kThreads, 0, stream, rows);
}

template void launch_backward_finish<64, 64, true>(const BackwardRowParams&, int64_t, cudaStream_t);
template void launch_backward_finish<64, 128, false>(const BackwardRowParams&, int64_t,
                                                     cudaStream_t);
template void launch_backward_finish<96, 96, true>(const BackwardRowParams&, int64_t, cudaStream_t);
template void launch_backward_finish<128, 64, false>(const BackwardRowParams&, int64_t,
                                                     cudaStream_t);
template void launch_backward_finish<128, 80, true>(const BackwardRowParams&, int64_t,
                                                    cudaStream_t);

void launch_backward_sinks(const BackwardRowParams& rows, int32_t queries, cudaStream_t stream) {
  if (rows.dsinks != nullptr) {
    attention_backward_sinks_kernel<<<static_cast<uint32_t>(rows.problem.heads), kThreads, 0,
                                      stream>>>(rows, queries);
    cuda::check(cudaGetLastError(), "attention_backward_sinks_kernel");
  }
}

void launch_backward_ranks(const BackwardBlocks& blocks, int32_t columns, int32_t lists,
                           int32_t heads, int32_t* counts, cudaStream_t stream) {
  attention_backward_ranks_kernel<<<static_cast<uint32_t>(lists), kThreads, 0, stream>>>(
      blocks, columns, heads, counts);
  cuda::check(cudaGetLastError(), "attention_backward_ranks_kernel");
}

}  // namespace flashloom::sm90
