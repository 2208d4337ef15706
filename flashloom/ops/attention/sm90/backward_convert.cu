#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/ops/attention/sm90/backward_counts.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_row_tile.cuh"
#include "flashloom/ops/attention/sm90/backward_rows.cuh"
#include "flashloom/ops/attention/sm90/backward_warps.cuh"

// dq from its sums while the main backward kernel still runs: a block a multiprocessor, the first
// ones where none is needed for that kernel, the others as its blocks end. Heads are taken in their
// order, as soon as they are complete.

namespace flashloom::sm90 {
namespace {

// As in backward_beside.cu, a warp fetches for itself: one multiprocessor takes 80 GB/s of sums so
// (and writes half of that), from registers 40.
template <int kDim, int kQueries, bool kSwapped>
struct ConvertShape {
  static_assert((kDim == 128 && kSwapped) || (kDim == 64 && !kSwapped && kQueries == 128));
  static constexpr int kWarps = 10;
  static constexpr int kStages = 2;
  // A chunk is 16 queries of both warpgroups' parts, or half of the columns of one's.
  static constexpr uint32_t kStageBytes = 8192;
  static constexpr uint32_t kPlaceBytes = kQueries * kDim * 4;
  static constexpr int kParts = kPlaceBytes / kStageBytes;
  static constexpr uint32_t kResultBytes = kSwapped ? 16 * kDim * 2 : 0;
  static constexpr uint32_t kWarpBytes = kStages * kStageBytes + kResultBytes;
  static constexpr uint32_t kBarrierBytes = 1024;
  static constexpr uint32_t kSharedBytes = kBarrierBytes + kWarps * kWarpBytes;
};

struct SumChunk {
  int32_t batch, head, row;  // of dq, where the place begins
  int32_t rows;              // that are stored from there on
  int32_t place, part;
  bool any[2];  // whether anything was added to a warpgroup's part
};

template <class T, int kDim, int kQueries, bool kSwapped>
__global__ void __launch_bounds__(ConvertShape<kDim, kQueries, kSwapped>::kWarps * 32, 1)
    attention_backward_convert_kernel(const __grid_constant__ BackwardRowParams params,
                                      int32_t places) {
  using namespace cuda;
  using Shape = ConvertShape<kDim, kQueries, kSwapped>;
  extern __shared__ __align__(1024) char memory[];
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const auto own_warp = static_cast<int32_t>(threadIdx.x / 32);
  uint64_t* full = reinterpret_cast<uint64_t*>(memory) + own_warp * Shape::kStages;
  char* ring = memory + Shape::kBarrierBytes + own_warp * Shape::kWarpBytes;
  const uint32_t result = shared_address(ring + Shape::kStages * Shape::kStageBytes);
  if (lane == 0) {
#pragma unroll
    for (int s = 0; s < Shape::kStages; ++s) {
      mbarrier_init(&full[s], 1);
    }
    mbarrier_init_fence();
  }
  __syncwarp();
  const int32_t places_of_head = params.query_tiles * params.problem.heads_per_key;
  // A warp draws its places; the next one is on its way while it works on this one.
  auto draw = [&] { return lane == 0 ? atomicAdd(params.drawn, 1) : 0; };
  int32_t drawn = draw();
  int32_t complete = -1;  // the last head that is known to be
  SumChunk next = {};
  auto find_place = [&] {
    next.place = __shfl_sync(0xffffffffu, drawn, 0);
    next.part = 0;
    if (next.place >= places) {
      return;
    }
    drawn = draw();
    const RowTile tile = row_tile(params, next.place, kQueries);
    next.batch = params.problem.cu_query != nullptr ? 0 : tile.batch;
    next.head = tile.head;
    next.row = tile.sequence.query_first + tile.first;
    next.rows = tile.sequence.query_rows - tile.first;
    const int32_t head = next.place / places_of_head;
    if (head != complete) {
      if (lane == 0) {
        wait_for_count(params.ended + head, params.ends, params.problem.status);
      }
      __syncwarp();
      fence_async_global();  // before the copy engine reads what those added that were waited for
      complete = head;
    }
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      next.any[g] =
          params.added == nullptr || __ldcg(params.added + 2 * int64_t{next.place} + g) != 0;
    }
  };
  find_place();
  // Fetches the next chunk, if there is one.
  auto begin = [&](int stage) {
    const SumChunk chunk = next;
    if (chunk.place < places) {
      if (chunk.rows > 0 && lane == 0) {
        char* to = ring + stage * Shape::kStageBytes;
        const char* from = reinterpret_cast<const char*>(params.dq_sum) +
                           int64_t{chunk.place} * Shape::kPlaceBytes;
        mbarrier_arrive_expect(&full[stage], Shape::kStageBytes);
        if constexpr (kSwapped) {
          constexpr uint32_t kHalf = Shape::kStageBytes / 2;
          bulk_load(to, from + chunk.part * kHalf, kHalf, &full[stage]);
          bulk_load(to + kHalf, from + Shape::kPlaceBytes / 2 + chunk.part * kHalf, kHalf,
                    &full[stage]);
        } else {
          bulk_load(to, from + chunk.part * Shape::kStageBytes, Shape::kStageBytes, &full[stage]);
        }
      }
      if (++next.part == Shape::kParts) {
        find_place();
      }
    }
    return chunk;
  };
  auto row_of = [&](const SumChunk& chunk, int32_t row) {
    return params.dq.at<uint16_t>(chunk.batch, chunk.head, chunk.row + row);
  };
  // Four sums of a lane: two columns of a fragment's row and of the eighth behind it.
  auto load = [&](int stage, bool any, int vector) {
    const auto* from = reinterpret_cast<const float4*>(ring + stage * Shape::kStageBytes);
    float4 sum = from[vector * 32 + lane];
    const float scale = params.scale;
    return any ? make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale)
               : make_float4(0, 0, 0, 0);
  };
  // Sums of 128 columns x 16 queries, 16 columns after the other, to rows of queries.
  auto turn = [&](const SumChunk& chunk, int stage) {
    const int32_t row = lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int g = 0; g < 2; ++g) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float4 a = load(stage, chunk.any[g], g * 8 + w);
        const float4 b = load(stage, chunk.any[g], g * 8 + 4 + w);
        // Lane l gives row l % 8 of matrix l / 8: queries of a, columns and the eighth behind; of
        // b.
        const int32_t column = g * 8 + w * 2 + lane / 8 % 2;
        stmatrix_x4_transposed(result + row * (kDim * 2) + (column ^ (row % 8)) * 16,
                               pack2<T>(a.x, a.y), pack2<T>(a.z, a.w), pack2<T>(b.x, b.y),
                               pack2<T>(b.z, b.w));
      }
    }
    __syncwarp();
  };
  auto store = [&](const SumChunk& chunk) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int32_t row = 2 * i + lane / 16;
      const uint4 words = load_shared_16(result + row * (kDim * 2) + (lane % 16 ^ (row % 8)) * 16);
      if (16 * chunk.part + row < chunk.rows) {
        *reinterpret_cast<uint4*>(row_of(chunk, 16 * chunk.part + row) + 8 * (lane % 16)) = words;
      }
    }
    __syncwarp();
  };
  // Sums of 64 queries x 32 columns, 16 queries after the other.
  auto store_half = [&](const SumChunk& chunk, int stage) {
    RowTensor half = params.dq;
    half.data = static_cast<T*>(half.data) + chunk.part % 2 * 32;
    half.wide = false;
    const int32_t first = chunk.part / 2 * 64 + lane / 4;
    const bool any = chunk.part < 2 ? chunk.any[0] : chunk.any[1];
    const auto* from = reinterpret_cast<const float4*>(ring + stage * Shape::kStageBytes) + lane;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float sums[16];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 sum = from[(i * 4 + w) * 32];
        sums[4 * i] = sum.x;
        sums[4 * i + 1] = sum.y;
        sums[4 * i + 2] = sum.z;
        sums[4 * i + 3] = sum.w;
      }
      store_rows<T, 32>(sums, params.scale, half, chunk.batch, chunk.head, chunk.row,
                        first + 16 * w, any ? chunk.rows : 0, chunk.rows, false, false, 0,
                        static_cast<uint32_t>(lane));
    }
  };
  SumChunk chunks[Shape::kStages];
  uint32_t parities[Shape::kStages] = {};
#pragma unroll
  for (int s = 0; s < Shape::kStages; ++s) {
    chunks[s] = begin(s);
  }
  while (chunks[0].place < places) {
#pragma unroll
    for (int s = 0; s < Shape::kStages; ++s) {
      const SumChunk chunk = chunks[s];
      if (chunk.place < places) {
        if (chunk.rows > 0) {
          mbarrier_wait(&full[s], parities[s], {"a warp that converts", "full"});
          parities[s] ^= 1;
          if constexpr (kSwapped) {
            turn(chunk, s);
          } else {
            store_half(chunk, s);
            __syncwarp();  // all have read
          }
        }
        chunks[s] = begin(s);
        if (kSwapped && chunk.rows > 0) {
          store(chunk);
        }
      }
    }
  }
  if (blockIdx.x == gridDim.x - 1) {
    wait_for_earlier_kernel();  // so that whoever waits for this kernel has waited for that one
  }
}

}  // namespace

template <int kColumns, int kQueries, bool kSwapped>
void launch_backward_convert(const BackwardRowParams& rows, int64_t places, int32_t blocks,
                             cudaStream_t stream) {
  using Shape = ConvertShape<kColumns, kQueries, kSwapped>;
  auto* kernel =
      rows.half ? &attention_backward_convert_kernel<__half, kColumns, kQueries, kSwapped>
                : &attention_backward_convert_kernel<__nv_bfloat16, kColumns, kQueries, kSwapped>;
  launch_warps<Shape>(kernel, "attention_backward_convert_kernel", blocks, stream, rows,
                      static_cast<int32_t>(places));
}

template void launch_backward_convert<64, 128, false>(const BackwardRowParams&, int64_t, int32_t,
                                                      cudaStream_t);
template void launch_backward_convert<128, 80, true>(const BackwardRowParams&, int64_t, int32_t,
                                                     cudaStream_t);

}  // namespace flashloom::sm90
