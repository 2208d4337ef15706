#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_band_shape.cuh"
#include "flashloom/ops/attention/sm90/backward_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_near_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"

// Backward attention where a query sees keys of its own tile of 64 and of the two beside it:
// windows of up to 64 keys to both sides. A block walks a run of neighbouring tiles; each tile of
// queries, keys and values enters shared memory once, delta is computed on the way, and the sums of
// dQ wait for the next tile of keys in registers and shared memory: nothing but inputs and results
// moves, and there is no workspace. The results are the same bits every time.
//
//   keys j:   queries j-1   dQ from shared memory, complete: stored
//             queries j     dQ from registers, to shared memory
//             queries j+1   dQ begins, in registers
//
// A run computes dQ of its own tiles, so it also looks at the keys before it and behind it.

namespace flashloom::sm90 {

/// One thread streams the tiles of q and dout, k and v.
template <class Shape>
__device__ __forceinline__ void band_load(const BandParams& params, const BandWork& work,
                                          const BandShared<Shape>& shared,
                                          const BackwardMaps& maps) {
  using namespace cuda;
  BandBarriers<Shape>& barriers = shared.barriers();
  const int32_t batch = work.tensor_batch(params);
  PipelineState<Shape::kQueryStages> query_place;
  PipelineState<Shape::kKeyStages> key_place;
  const auto load = [&](char* pair, uint64_t* full, const CUtensorMap& first,
                        const CUtensorMap& second, int32_t row) {
    mbarrier_arrive_expect(full, 2 * Shape::kTileBytes);
    tma_load_4d(pair, &first, full, 0, row, work.head, batch);
    tma_load_4d(pair + Shape::kTileBytes, &second, full, 0, row, work.head, batch);
  };
  for (int32_t tile = work.low; tile < work.high; ++tile) {
    mbarrier_wait(&barriers.q_empty[query_place.stage], query_place.parity ^ 1,
                  {"the producer", "q_empty"});
    load(shared.queries(query_place.stage), &barriers.q_full[query_place.stage], maps.q, maps.dout,
         work.sequence.query_first + tile * 64);
    query_place.advance();
    mbarrier_wait(&barriers.k_empty[key_place.stage], key_place.parity ^ 1,
                  {"the producer", "k_empty"});
    load(shared.keys(key_place.stage), &barriers.k_full[key_place.stage], maps.k, maps.v,
         work.sequence.key_first + tile * 64);
    key_place.advance();
  }
}

/// One thread streams `out`, half a tile at a time.
template <class Shape>
__device__ __forceinline__ void band_load_out(const BandParams& params, const BandWork& work,
                                              const BandShared<Shape>& shared) {
  using namespace cuda;
  BandBarriers<Shape>& barriers = shared.barriers();
  uint32_t parity = 1;
  for (int32_t half = 2 * work.low; half < 2 * work.high; ++half) {
    mbarrier_wait(&barriers.out_empty, parity, {"the producer of out", "out_empty"});
    parity ^= 1;
    mbarrier_arrive_expect(&barriers.out_full, Shape::kTileBytes / 2);
    tma_load_4d(shared.out(), &params.out, &barriers.out_full, 0,
                work.sequence.query_first + half * 32, work.head, work.tensor_batch(params));
  }
}

/// A warp computes lse in powers of two and delta = sum(dout * out) - dlse, a row a lane.
template <class Shape>
__device__ __forceinline__ void band_rows(const BandParams& params, const BandWork& work,
                                          const BandShared<Shape>& shared) {
  using namespace cuda;
  using T = typename Shape::T;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int64_t batch = work.tensor_batch(params);
  const uint32_t out = shared_address(shared.out());
  BandBarriers<Shape>& barriers = shared.barriers();
  PipelineState<Shape::kQueryStages> place;
  uint32_t parity = 0;
#pragma unroll 1
  for (int32_t half = 2 * work.low; half < 2 * work.high; ++half) {
    const int32_t query = half * 32 + lane;
    const int64_t row = work.sequence.query_first + query;
    const bool exists = query < work.sequence.query_length;
    float shift = exists ? *params.lse.at<const float>(batch, work.head, row) : -INFINITY;
    float sum = exists && params.dlse.data != nullptr
                    ? -*params.dlse.at<const float>(batch, work.head, row)
                    : 0;
    const bool second = half % 2 != 0;
    if (!second) {
      mbarrier_wait(&barriers.q_full[place.stage], place.parity, {"the warp of rows", "q_full"});
    }
    mbarrier_wait(&barriers.out_full, parity, {"the warp of rows", "out_full"});
    parity ^= 1;
    const uint32_t dout = shared_address(shared.queries(place.stage) + Shape::kTileBytes);
    const auto own = static_cast<uint32_t>(query % Shape::kTile);
#pragma unroll
    for (uint32_t column = 0; column < Shape::kDim; column += 8) {
      sum += row_product<T>(load_shared_16(out + swizzled_offset(own % 32, column, 32)),
                            load_shared_16(dout + swizzled_offset(own, column, Shape::kTile)));
    }
    shared.lse(place.stage)[own] = shift == -INFINITY ? INFINITY : shift * kLog2e;
    shared.delta(place.stage)[own] = exists ? sum : 0;
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&barriers.out_empty);
      if (second) {
        mbarrier_arrive(&barriers.rows_full[place.stage]);
      }
    }
    if (second) {
      place.advance();
    }
  }
}

template <class Shape>
struct BandConsumer {
  using T = typename Shape::T;
  // Where the sums of a step's dQ come from.
  enum class Sums { saved, carried, fresh };

  const BandParams& params;
  const BandWork& work;
  const BandShared<Shape>& shared;
  BandBarriers<Shape>& barriers;
  uint32_t lane;
  int32_t own_row;          // of a tile: this thread's first key, or query of dQ
  int32_t tail, tail_rows;  // the tile whose last rows are another sequence's, or -1
  int32_t open, closed;     // of the tile of keys: tiles in [open, closed) hide nothing
  float dk[32], dv[32], carry[32];

  __device__ __forceinline__ BandConsumer(const BandParams& of, const BandWork& own,
                                          const BandShared<Shape>& memory)
      : params(of),
        work(own),
        shared(memory),
        barriers(memory.barriers()),
        lane(threadIdx.x % 32),
        own_row(static_cast<int32_t>(threadIdx.x % 128 / 32 * 16 + lane / 4)) {
    tail_rows = own.sequence.key_length % Shape::kTile;
    const bool packed = of.problem.cu_key != nullptr;
    tail = packed && tail_rows != 0 ? own.sequence.key_length / Shape::kTile : -1;
  }

  static __device__ __forceinline__ void clear(float (&sum)[32]) {
#pragma unroll
    for (float& value : sum) {
      value = 0;
    }
  }

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
  __device__ __forceinline__ bool sends(int32_t tile) const { return params.sends && tile != tail; }

  __device__ __forceinline__ float4* saved() const { return shared.sums() + threadIdx.x % 128; }

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

  __device__ __forceinline__ void zero_tail(char* pair) const {
    zero_rows<1>(pair, tail_rows, Shape::kTile, 1);
    zero_rows<1>(pair + Shape::kTileBytes, tail_rows, Shape::kTile, 1);
  }

  /// dQ += dS^T K; then all products of the step are done.
  __device__ __forceinline__ void finish_step(float (&sums)[32], uint32_t (&weights)[16],
                                              uint32_t (&ds)[16], uint32_t k) {
    using namespace cuda;
    wgmma_hold(sums);
    wgmma_fence();
    issue_columns_by_columns<T, Shape::kTile, 64, true>(sums, shared_address(shared.ds()), k);
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(dk);
    wgmma_hold(dv);
    wgmma_hold(weights);
    wgmma_hold(ds);
  }

  /// All that the queries of `tile` add to dK and dV, and the keys of `key_tile` to dQ.
  /// `last_keys`: where the keys before are given back, or null.
  template <Sums kSums>
  __device__ __forceinline__ void step(int32_t tile, int32_t key_tile, const char* keys,
                                       uint64_t* last_keys) {
    using namespace cuda;
    const auto number = static_cast<uint32_t>(tile - work.low);
    const uint32_t stage = number % Shape::kQueryStages;
    char* queries = shared.queries(stage);
    mbarrier_wait(&barriers.q_full[stage], number / Shape::kQueryStages % 2,
                  {"the consumer", "q_full"});
    mbarrier_wait(&barriers.rows_full[stage], number / Shape::kQueryStages % 2,
                  {"the consumer", "rows_full"});
    if (tile == tail) {
      zero_tail(queries);
    }
    const uint32_t k = shared_address(keys);
    const uint32_t q = shared_address(queries);
    float scores[32], dp[32];
    uint32_t weights[16], ds[16];
    const auto issue_scores = [](float(&d)[32], uint32_t a, uint32_t b) {
      wgmma_hold(d);
      wgmma_fence();
      issue_rows_by_rows<T, 64, 64, 64, 64>(d, a, b);
    };
    issue_scores(scores, k, q);
    issue_scores(dp, k + Shape::kTileBytes, q + Shape::kTileBytes);
    wgmma_wait<1>();
    wgmma_hold(scores);
    if (tile < open || tile >= closed) {
      hide_queries(scores, work.sequence, key_tile * Shape::kTile + own_row, tile * Shape::kTile,
                   lane);
    }
    const float* lse = shared.lse(stage) + 2 * (lane % 4);
    const float* delta = shared.delta(stage) + 2 * (lane % 4);
    exponentials_in_place(scores, params.scale * kLog2e, lse);
    wgmma_wait<0>();
    wgmma_hold(dp);
    near_slopes<T, true>(scores, dp, weights, ds, delta);
    wgmma_hold(weights);
    wgmma_hold(dv);
    wgmma_fence();
    issue_registers_by_tile<T, 64, 64>(dv, weights, q + Shape::kTileBytes);
    // All warps have waited for the last step's products, which read the dS of all.
    named_barrier_sync(1, 128, {"the consumer", "the last dS"});
    store_words(ds, shared.ds(), lane);
    wgmma_hold(ds);
    wgmma_hold(dk);
    wgmma_fence();
    issue_registers_by_tile<T, 64, 64>(dk, ds, q);
    fence_async_shared();
    named_barrier_sync(1, 128, {"the consumer", "dS"});
    if constexpr (kSums == Sums::saved) {
      float sums[32];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4 four = saved()[128 * i];
        sums[4 * i] = four.x;
        sums[4 * i + 1] = four.y;
        sums[4 * i + 2] = four.z;
        sums[4 * i + 3] = four.w;
      }
      finish_step(sums, weights, ds, k);
      release(last_keys);
      if (tile >= work.first && sends(tile)) {
        begin_sending();
        place(sums, params.scale, queries);
        fence_async_shared();
        named_barrier_sync(1, 128, {"the consumer", "dQ"});
        if (threadIdx.x % 128 == 0) {
          send(params.dq_map, queries, work.sequence.query_first + tile * Shape::kTile);
          bulk_commit();
        }
      } else if (tile >= work.first) {
        store_queries(sums, tile);
      }
    } else {
      if constexpr (kSums == Sums::fresh) {
        clear(carry);
      }
      finish_step(carry, weights, ds, k);
    }
  }

  __device__ __forceinline__ void run() {
    using namespace cuda;
    const Sequence& sequence = work.sequence;
    clear(carry);
    PipelineState<Shape::kKeyStages> key_place;
    for (int32_t tile = work.low; tile < work.high; ++tile) {
      const bool own = tile >= work.first && tile < work.end;
      char* keys = shared.keys(key_place.stage);
      mbarrier_wait(&barriers.k_full[key_place.stage], key_place.parity,
                    {"the consumer", "k_full"});
      if (tile == tail) {
        zero_tail(keys);
      }
      const KeysBorders<Shape::kTile> borders(params.problem, sequence, tile * Shape::kTile);
      open = borders.open;
      closed = borders.closed;
      clear(dk);
      clear(dv);
      // Buffers are given back a step late, when the copy engine has long read the results there.
      if (tile > work.low) {
        step<Sums::saved>(tile - 1, tile, keys, &barriers.k_empty[key_place.stage ^ 1]);
      }
      if (own) {
        step<Sums::carried>(tile, tile, keys, nullptr);
        if (tile + 1 == work.tiles) {
          store_queries(carry, tile);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            saved()[128 * i] =
                make_float4(carry[4 * i], carry[4 * i + 1], carry[4 * i + 2], carry[4 * i + 3]);
          }
        }
      }
      if (tile > work.low) {
        const auto number = static_cast<uint32_t>(tile - 1 - work.low);
        release(&barriers.q_empty[number % Shape::kQueryStages]);
      }
      if (tile < work.end && tile + 1 < work.high) {
        step<Sums::fresh>(tile + 1, tile, keys, nullptr);
      }
      begin_sending();
      if (own && sends(tile)) {
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
      } else if (own) {
        store(dk, params.dk, params.scale, sequence.key_first, tile, sequence.key_rows,
              params.columns);
        store(dv, params.dv, 1, sequence.key_first, tile, sequence.key_rows, params.value_columns);
      }
      key_place.advance();
    }
    if (threadIdx.x % 128 == 0) {
      bulk_wait_read<0>();
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    attention_backward_kernel_band(const __grid_constant__ BandParams params,
                                   const __grid_constant__ BackwardMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const BandShared<Shape> shared{memory};
  BandBarriers<Shape>& barriers = shared.barriers();
  const BandWork found = band_work<Shape>(params, static_cast<int32_t>(blockIdx.x));
  if (found.first >= found.end) {
    return;
  }
  if (threadIdx.x == 0) {
    shared.work() = found;
    begin_backward_block(maps, [&] {
      init_ring(barriers.q_full, barriers.q_empty, 1, 1);
      init_ring(barriers.k_full, barriers.k_empty, 1, 1);
      mbarrier_init(&barriers.out_full, 1);
      mbarrier_init(&barriers.out_empty, 1);
      for (int i = 0; i < Shape::kQueryStages; ++i) {
        mbarrier_init(&barriers.rows_full[i], 1);
      }
    });
  }
  __syncthreads();
  const int32_t warp = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 32), 0);
  const BandWork& work = shared.work();
  if (warp < 4) {
    register_limit_lower<Shape::kProducerRegisters>();
    if (warp == 2) {
      band_rows<Shape>(params, work, shared);
    } else if (threadIdx.x == 0) {
      band_load<Shape>(params, work, shared, maps);
    } else if (threadIdx.x == 32) {
      band_load_out<Shape>(params, work, shared);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    BandConsumer<Shape> consumer(params, work, shared);
    consumer.run();
  }
}

}  // namespace flashloom::sm90
