#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_band_shape.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"

// How results leave the backward kernel for narrow bands: through the copy engine from the places
// of the tiles that they are of, else from registers.

namespace flashloom::sm90 {

template <class Shape>
struct BandResults {
  using T = typename Shape::T;
  const BandParams& params;
  BandWork& work;
  const BandShared<Shape>& shared;
  BandBarriers<Shape>& barriers;
  uint32_t lane;
  int32_t own_row;  // of a tile: this thread's first key, or query of dQ
  float dk[32], dv[32];

  __device__ __forceinline__ BandResults(const BandParams& of, const BandShared<Shape>& memory)
      : params(of),
        work(memory.work(BandRole::consumes)),
        shared(memory),
        barriers(memory.barriers()),
        lane(threadIdx.x % 32),
        own_row(static_cast<int32_t>(threadIdx.x % 128 / 32 * 16 + lane / 4)) {}

  /// Gives a buffer back whose products are done, when the copy engine has read what lies there.
  __device__ __forceinline__ void release(uint64_t* empty) const {
    if (threadIdx.x % 128 == 0) {
      cuda::bulk_wait_read<0>();
      cuda::mbarrier_arrive(empty);
    }
  }

  /// All warps have done with the tile that results shall take the place of.
  __device__ __forceinline__ void begin_sending() const {
    cuda::named_barrier_sync(1, 128, {"the consumer", "the others' products"});
  }

  static __device__ __forceinline__ void store_words(const uint32_t (&words)[16], const char* tile,
                                                     uint32_t lane) {
    const uint32_t row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      cuda::stmatrix_x4(cuda::shared_address(tile) +
                            cuda::swizzled_offset(row, 16 * i + 8 * (lane / 16), Shape::kTile),
                        words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
  }

  /// Sums, rounded, in the place of a tile.
  __device__ __forceinline__ void place(const float (&sum)[32], float factor, char* tile) const {
    uint32_t words[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      words[i] = cuda::pack2<T>(sum[2 * i] * factor, sum[2 * i + 1] * factor);
    }
    store_words(words, tile, lane);
  }

  __device__ __forceinline__ void send(const CUtensorMap& map, const char* tile,
                                       int32_t row) const {
    cuda::tma_store_4d(&map, cuda::shared_address(tile), 0, row, work.head,
                       work.tensor_batch(params));
  }

  /// All of a tile's rows are this sequence's.
  __device__ __forceinline__ bool sends(int32_t tile) const {
    return params.sends && tile != work.tail;
  }

  __device__ __forceinline__ void store(const float (&sum)[32], const RowTensor& to, float factor,
                                        int32_t first_row, int32_t tile, int32_t rows,
                                        int32_t columns) const {
    store_rows<T, 64>(sum, factor, to, work.tensor_batch(params), work.head, first_row,
                      tile * Shape::kTile + own_row, rows, rows, params.accumulate, true, columns,
                      lane);
  }

  __device__ __forceinline__ void store_queries(const float (&sum)[32], int32_t tile) const {
    store(sum, params.dq, params.scale, work.sequence.query_first, tile, work.sequence.query_rows,
          params.columns);
  }

  /// dQ of a tile, in the place of its queries. All products that read them are done in this warp.
  __device__ __forceinline__ void give_queries(const float (&sums)[32], int32_t tile,
                                               char* queries) const {
    using namespace cuda;
    if (!sends(tile)) {
      store_queries(sums, tile);
      return;
    }
    begin_sending();
    place(sums, params.scale, queries);
    fence_async_shared();
    named_barrier_sync(1, 128, {"the consumer", "dQ"});
    if (threadIdx.x % 128 == 0) {
      send(params.dq_map, queries, work.sequence.query_first + tile * Shape::kTile);
      bulk_commit();
    }
  }

  /// dK and dV of a tile, in the places of its keys and values, whose products are done.
  __device__ __forceinline__ void give_keys(int32_t tile, char* keys) const {
    using namespace cuda;
    const Sequence& sequence = work.sequence;
    if (!sends(tile)) {
      store(dk, params.dk, params.scale, sequence.key_first, tile, sequence.key_rows,
            params.columns);
      store(dv, params.dv, 1, sequence.key_first, tile, sequence.key_rows, params.value_columns);
      return;
    }
    place(dk, params.scale, keys);
    place(dv, 1, keys + Shape::kTileBytes);
    fence_async_shared();
    named_barrier_sync(1, 128, {"the consumer", "dK and dV"});
    if (threadIdx.x % 128 == 0) {
      const int32_t row = sequence.key_first + tile * Shape::kTile;
      send(params.dk_map, keys, row);
      send(params.dv_map, keys + Shape::kTileBytes, row);
      bulk_commit();
    }
  }
};

}  // namespace flashloom::sm90
