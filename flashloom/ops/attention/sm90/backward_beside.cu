#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/backward_counts.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_row_tile.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/backward_warps.cuh"

// Rows prepared while the main backward kernel works on the heads before: a few blocks, each with a
// multiprocessor to itself, stream them from memory.

namespace flashloom::sm90 {
namespace {

// Bytes in flight a multiprocessor are what its rate depends on, so shared memory is full of them;
// each warp fetches for itself, and no other waits for it.
template <int kLanes, int kQueries>
struct RestShape {
  static constexpr int kWarps = 12;
  static constexpr int kStages = 2;
  static constexpr int kRows = row_chunk(kLanes);
  static constexpr int kParts = kQueries / kRows;
  static_assert(kQueries % kRows == 0);
  static constexpr int kPanels = kLanes / 8;
  static constexpr uint32_t kTensorBytes = kPanels * kRows * cuda::kPanelRowBytes;
  static constexpr uint32_t kStageBytes = 2 * kTensorBytes;
  static constexpr uint32_t kBarrierBytes = 1024;
  static constexpr uint32_t kSharedBytes = kBarrierBytes + kWarps * kStages * kStageBytes;
};

/// A warp's rows of a place.
struct RowChunk {
  int32_t batch, head, row;  // of the tensors
  int32_t length;            // rows that exist from there on
  int32_t place, part;
  bool stored;  // whether the place has any rows, padding included
};

/// sums[i] over the lanes of a row -> lane i of them, and i + 8.
template <int kLanes>
__device__ __forceinline__ float scatter_sums(const float (&sums)[8], int32_t lane) {
  float fours[4], twos[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool odd = (lane & 1) != 0;
    fours[i] = (odd ? sums[2 * i + 1] : sums[2 * i]) +
               __shfl_xor_sync(0xffffffffu, odd ? sums[2 * i] : sums[2 * i + 1], 1);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool odd = (lane & 2) != 0;
    twos[i] = (odd ? fours[2 * i + 1] : fours[2 * i]) +
              __shfl_xor_sync(0xffffffffu, odd ? fours[2 * i] : fours[2 * i + 1], 2);
  }
  const bool odd = (lane & 4) != 0;
  float sum = (odd ? twos[1] : twos[0]) + __shfl_xor_sync(0xffffffffu, odd ? twos[0] : twos[1], 4);
  if constexpr (kLanes == 16) {
    sum += __shfl_xor_sync(0xffffffffu, sum, 8);
  }
  return sum;
}

template <class T, int kLanes, int kQueries>
__global__ void __launch_bounds__(RestShape<kLanes, kQueries>::kWarps * 32, 1)
    attention_backward_prepare_rest_kernel(const __grid_constant__ BackwardRowParams params,
                                           const __grid_constant__ BackwardRowMaps maps,
                                           int32_t first, int32_t places) {
  using namespace cuda;
  using Shape = RestShape<kLanes, kQueries>;
  extern __shared__ __align__(1024) char memory[];
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const auto own_warp = static_cast<int32_t>(threadIdx.x / 32);
  uint64_t* full = reinterpret_cast<uint64_t*>(memory) + own_warp * Shape::kStages;
  char* ring = memory + Shape::kBarrierBytes + own_warp * (Shape::kStages * Shape::kStageBytes);
  if (lane == 0) {
#pragma unroll
    for (int s = 0; s < Shape::kStages; ++s) {
      mbarrier_init(&full[s], 1);
    }
    mbarrier_init_fence();
  }
  __syncwarp();
  // Not before: the main kernel must find the counts at zero.
  wait_for_earlier_kernel();
  const int32_t places_of_head = params.query_tiles * params.problem.heads_per_key;
  if (blockIdx.x == 0) {
    for (auto i = static_cast<int32_t>(threadIdx.x); i < first / places_of_head;
         i += Shape::kWarps * 32) {
      store_release(params.ready + i, places_of_head);
    }
  }
  let_next_kernel_start();
  // A warp takes whole places: to find one, and to tell that it is done, costs much.
  const auto warps = static_cast<int32_t>(gridDim.x) * Shape::kWarps;
  RowChunk next = {};
  auto find_place = [&] {
    const RowTile tile = row_tile(params, next.place, kQueries);
    next.part = 0;
    next.batch = params.problem.cu_query != nullptr ? 0 : tile.batch;
    next.head = tile.head;
    next.row = tile.sequence.query_first + tile.first;
    next.length = tile.sequence.query_length - tile.first;
    // Of packed documents such a place may be another one's.
    next.stored = params.problem.cu_query == nullptr || tile.first < tile.sequence.query_rows;
  };
  next.place =
      first + own_warp * static_cast<int32_t>(gridDim.x) + static_cast<int32_t>(blockIdx.x);
  if (next.place < places) {
    find_place();
  }
  // Fetches the next chunk, if there is one.
  auto begin = [&](int stage) {
    const RowChunk chunk = next;
    if (chunk.place < places) {
      if (chunk.stored && lane == 0) {
        char* to = ring + stage * Shape::kStageBytes;
        mbarrier_arrive_expect(&full[stage], Shape::kStageBytes);
#pragma unroll
        for (int p = 0; p < Shape::kPanels; ++p) {
          char* panel = to + p * panel_bytes(Shape::kRows);
          tma_load_4d(panel, &maps.out, &full[stage], p * 64, chunk.row, chunk.head, chunk.batch,
                      kEvictFirst);
          tma_load_4d(panel + Shape::kTensorBytes, &maps.dout, &full[stage], p * 64, chunk.row,
                      chunk.head, chunk.batch);
        }
      }
      next.row += Shape::kRows;
      next.length -= Shape::kRows;
      if (++next.part == Shape::kParts) {
        next.place += warps;
        if (next.place < places) {
          find_place();
        }
      }
    }
    return chunk;
  };
  // The lanes of a row read it; lane i of them then keeps the i-th of their 8 rows.
  const int32_t column = lane % kLanes;
  const int32_t lane_row = lane / kLanes * 8;
  const int32_t own = lane_row + column;
  const bool keeps = column < 8;
  const uint32_t lane_from = column / 8 * panel_bytes(Shape::kRows) + lane_row * kPanelRowBytes;
  auto prepare = [&](int stage, uint32_t parity) {
    mbarrier_wait(&full[stage], parity, {"a warp that prepares rows", "full"});
    const uint32_t from = shared_address(ring + stage * Shape::kStageBytes) + lane_from;
    float sums[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t at = from + i * kPanelRowBytes + (lane % 8 ^ i) * 16;
      sums[i] = row_product<T>(load_shared_16(at), load_shared_16(at + Shape::kTensorBytes));
    }
    return scatter_sums<kLanes>(sums, lane);
  };
  auto clear = [&](const RowChunk& chunk) {
    if (params.added != nullptr) {
      if (chunk.part == 0 && lane < 2) {
        params.added[2 * int64_t{chunk.place} + lane] = 0;
      }
    } else if (params.dq_sum != nullptr) {
      constexpr int kVectors = kQueries * kLanes * 8 / 4 / Shape::kParts;  // at most
      const int32_t vectors = params.sum_floats / 4 / Shape::kParts;
      auto* sums =
          reinterpret_cast<float4*>(params.dq_sum + int64_t{chunk.place} * params.sum_floats) +
          chunk.part * vectors;
#pragma unroll 4
      for (int i = lane; i < kVectors; i += 32) {
        if (i < vectors) {
          sums[i] = make_float4(0, 0, 0, 0);
        }
      }
    }
  };
  RowChunk chunks[Shape::kStages];
  uint32_t parities[Shape::kStages] = {};
#pragma unroll
  for (int s = 0; s < Shape::kStages; ++s) {
    chunks[s] = begin(s);
  }
  while (chunks[0].place < places) {
#pragma unroll
    for (int s = 0; s < Shape::kStages; ++s) {
      const RowChunk chunk = chunks[s];
      if (chunk.place < places) {
        float lse = INFINITY;
        float less = 0;
        float delta = 0;
        const bool exists = keeps && own < chunk.length;
        if (exists) {
          lse = *params.lse.at<const float>(chunk.batch, chunk.head, chunk.row + own);
          if (params.dlse.data != nullptr) {
            less = *params.dlse.at<const float>(chunk.batch, chunk.head, chunk.row + own);
          }
        }
        if (chunk.stored) {
          clear(chunk);
          delta = prepare(s, parities[s]);
          parities[s] ^= 1;
          __syncwarp();  // all have read
        }
        chunks[s] = begin(s);
        if (chunk.stored && keeps) {
          const int64_t to = int64_t{chunk.place} * kQueries + chunk.part * Shape::kRows + own;
          params.padded_lse[to] = lse == -INFINITY ? INFINITY : lse * kLog2e;
          params.delta[to] = exists ? delta - less : 0;
        }
        if (chunk.part == Shape::kParts - 1) {
          __syncwarp();
          if (lane == 0) {
            add_release(params.ready + chunk.place / places_of_head);
          }
        }
      }
    }
  }
}

}  // namespace

template <int kLanes, int kQueries>
void launch_backward_prepare_rest(const BackwardRowParams& rows, const BackwardRowMaps& maps,
                                  int64_t first, int64_t places, int32_t blocks,
                                  cudaStream_t stream) {
  using Shape = RestShape<kLanes, kQueries>;
  auto* kernel = rows.half
                     ? &attention_backward_prepare_rest_kernel<__half, kLanes, kQueries>
                     : &attention_backward_prepare_rest_kernel<__nv_bfloat16, kLanes, kQueries>;
  launch_warps<Shape>(kernel, "attention_backward_prepare_rest_kernel", blocks, stream, rows, maps,
                      static_cast<int32_t>(first), static_cast<int32_t>(places));
}

// Rows of up to 64, 96 and 128 columns; of 128 under a block mask.
template void launch_backward_prepare_rest<8, 128>(const BackwardRowParams&, const BackwardRowMaps&,
                                                   int64_t, int64_t, int32_t, cudaStream_t);
template void launch_backward_prepare_rest<16, 96>(const BackwardRowParams&, const BackwardRowMaps&,
                                                   int64_t, int64_t, int32_t, cudaStream_t);
template void launch_backward_prepare_rest<16, 128>(const BackwardRowParams&,
                                                    const BackwardRowMaps&, int64_t, int64_t,
                                                    int32_t, cudaStream_t);
template void launch_backward_prepare_rest<16, 80>(const BackwardRowParams&, const BackwardRowMaps&,
                                                   int64_t, int64_t, int32_t, cudaStream_t);

}  // namespace flashloom::sm90
