#pragma once

#include <cstdint>

#include "flashloom/ops/attention/sm90/backward_band_results.cuh"
#include "flashloom/ops/attention/sm90/backward_near_fragments.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_queries_work.cuh"

// The consumer warpgroup of the backward kernel for narrow bands.

namespace flashloom::sm90 {

template <class Shape>
struct BandConsumer : BandResults<Shape> {
  using Results = BandResults<Shape>;
  using Results::barriers;
  using Results::begin_sending;
  using Results::dk;
  using Results::dv;
  using Results::give_keys;
  using Results::give_queries;
  using Results::lane;
  using Results::own_row;
  using Results::params;
  using Results::release;
  using Results::shared;
  using Results::store_queries;
  using Results::store_words;
  using Results::work;
  using typename Results::T;
  // Where the sums of a step's dQ come from.
  enum class Sums { saved, carried, fresh };

  int32_t open, closed;  // of the tile of keys: tiles in [open, closed) hide nothing
  float carry[32];

  using Results::Results;

  static __device__ __forceinline__ void clear(float (&sum)[32]) {
#pragma unroll
    for (float& value : sum) {
      value = 0;
    }
  }

  __device__ __forceinline__ float4* saved() const { return shared.sums() + threadIdx.x % 128; }

  __device__ __forceinline__ void save(const float (&sums)[32]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      saved()[128 * i] =
          make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
    }
  }

  __device__ __forceinline__ void load_saved(float (&sums)[32]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 four = saved()[128 * i];
      sums[4 * i] = four.x;
      sums[4 * i + 1] = four.y;
      sums[4 * i + 2] = four.z;
      sums[4 * i + 3] = four.w;
    }
  }

  __device__ __forceinline__ void zero_tail(char* pair) const {
    zero_rows<1>(pair, work.tail_rows, Shape::kTile, 1);
    zero_rows<1>(pair + Shape::kTileBytes, work.tail_rows, Shape::kTile, 1);
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
    const auto number = static_cast<uint32_t>(tile - work.base);
    const uint32_t stage = number % Shape::kQueryStages;
    char* queries = shared.queries(stage);
    mbarrier_wait(&barriers.q_full[stage], number / Shape::kQueryStages % 2,
                  {"the consumer", "q_full"});
    mbarrier_wait(&barriers.rows_full[stage], number / Shape::kQueryStages % 2,
                  {"the consumer", "rows_full"});
    if (tile == work.tail) {
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
      load_saved(sums);
      finish_step(sums, weights, ds, k);
      release(last_keys);
      if (tile >= work.first) {
        give_queries(sums, tile, queries);
      }
    } else {
      if constexpr (kSums == Sums::fresh) {
        clear(carry);
      }
      finish_step(carry, weights, ds, k);
    }
  }

  /// The block's tiles of one sequence.
  __device__ __forceinline__ void run_sequence(cuda::PipelineState<Shape::kKeyStages>& key_place) {
    using namespace cuda;
    const Sequence& sequence = work.sequence;
    clear(carry);
    for (int32_t tile = work.low; tile < work.high; ++tile) {
      const bool own = tile >= work.first && tile < work.end;
      char* keys = shared.keys(key_place.stage);
      mbarrier_wait(&barriers.k_full[key_place.stage], key_place.parity,
                    {"the consumer", "k_full"});
      if (tile == work.tail) {
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
          save(carry);
        }
      }
      if (tile > work.low) {
        const auto number = static_cast<uint32_t>(tile - 1 - work.base);
        release(&barriers.q_empty[number % Shape::kQueryStages]);
      }
      if (tile < work.end && tile + 1 < work.high) {
        step<Sums::fresh>(tile + 1, tile, keys, nullptr);
      }
      begin_sending();
      if (own) {
        give_keys(tile, keys);
      }
      key_place.advance();
    }
  }

  __device__ __forceinline__ void run() {
    cuda::PipelineState<Shape::kKeyStages> key_place;
    bool more = true;
    while (more) {
      run_sequence(key_place);
      // The last tiles, which no step comes behind.
      const auto number = static_cast<uint32_t>(work.high - 1 - work.base);
      release(&barriers.k_empty[key_place.stage ^ 1]);
      release(&barriers.q_empty[number % Shape::kQueryStages]);
      more = next_sequence<Shape>(params, work, threadIdx.x % 128 == 0, [] {
        cuda::named_barrier_sync(1, 128, {"the consumer", "the next sequence"});
      });
    }
  }
};

}  // namespace flashloom::sm90
