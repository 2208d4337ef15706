#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"

// The end of a block of the backward kernel: dK and dV of a warpgroup's 64 keys.

namespace flashloom::sm90 {

/// Sends a warp's 16 rows of `sum` x factor through its rows of a tile of kRows in shared memory.
template <class Shape, int kRows = Shape::kKeys>
__device__ __forceinline__ void send_rows(const float (&sum)[Shape::kDim / 2], float factor,
                                          const CUtensorMap* map, char* tile, uint32_t tile_row,
                                          int32_t row, int32_t head, int32_t batch, uint32_t lane) {
  using namespace cuda;
  using T = typename Shape::T;
  static_assert(Shape::Panels::kColumns == kPanelColumns);
  const uint32_t to = shared_address(tile);
#pragma unroll
  for (uint32_t i = 0; i < Shape::kDim / 16; ++i) {
    uint32_t words[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      words[j] = pack2<T>(sum[8 * i + 2 * j] * factor, sum[8 * i + 2 * j + 1] * factor);
    }
    // Lane l: row l % 16, columns 8 (l / 16).
    stmatrix_x4(to + swizzled_offset(tile_row + lane % 16, 16 * i + 8 * (lane / 16), kRows),
                words[0], words[1], words[2], words[3]);
  }
  fence_async_shared();
  __syncwarp();
  if (lane == 0) {
#pragma unroll
    for (uint32_t p = 0; p < Shape::kPanels; ++p) {
      tma_store_4d(map, to + p * panel_bytes(kRows) + tile_row * kPanelRowBytes,
                   static_cast<int32_t>(p * kPanelColumns), row, head, batch);
    }
    bulk_commit();
  }
}

/// By both consumer warpgroups, which have done with what lies in the two tiles of keys in shared
/// memory through which the results leave. Rows of f32 leave from registers, as do those of a
/// packed sequence's end, behind which another one's lie. Sums of rows that are stored but not used
/// are those of nothing.
template <class Shape>
__device__ __forceinline__ void store_results(const BackwardParams& params,
                                              const BackwardMaps& maps, const BackwardWork& work,
                                              int32_t group, char* dk_room, char* dv_room,
                                              const float (&dk)[Shape::kDim / 2],
                                              const float (&dv)[Shape::kDim / 2]) {
  using T = typename Shape::T;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t tile_row = static_cast<uint32_t>(group) * 64 + threadIdx.x % 128 / 32 * 16;
  const Sequence& sequence = work.sequence;
  const bool packed = params.problem.cu_key != nullptr;
  const int32_t batch = packed ? 0 : work.batch;
  const float value_factor = Shape::kAdjusts ? params.score.keep : 1;
  const auto first = work.key + static_cast<int32_t>(tile_row);
  if constexpr (!Shape::kStays) {  // there they are no operand
    cuda::named_barrier_sync(1, 256, {"a consumer", "the other's last product"});
  }
  if (params.sends && (!packed || first + 16 <= sequence.key_rows)) {
    const int32_t row = sequence.key_first + first;
    send_rows<Shape>(dv, value_factor, &maps.dv, dv_room, tile_row, row, work.head, batch, lane);
    send_rows<Shape>(dk, params.scale, &maps.dk, dk_room, tile_row, row, work.head, batch, lane);
    if constexpr (!Shape::kStays) {  // else before the tiles are written again
      cuda::bulk_wait_read<0>();
    }
    return;
  }
  const auto own_key = first + static_cast<int32_t>(lane / 4);
  const int32_t rows = sequence.key_rows;
  store_rows<T, Shape::kDim>(dk, params.scale, params.dk, batch, work.head, sequence.key_first,
                             own_key, rows, rows, params.accumulate, !Shape::kExact, params.columns,
                             lane);
  store_rows<T, Shape::kDim>(dv, value_factor, params.dv, batch, work.head, sequence.key_first,
                             own_key, rows, rows, params.accumulate, !Shape::kExact,
                             params.value_columns, lane);
}

}  // namespace flashloom::sm90
