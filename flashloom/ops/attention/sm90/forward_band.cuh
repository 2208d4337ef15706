#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_products.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"
#include "flashloom/ops/attention/sm90/forward_band_produce.cuh"
#include "flashloom/ops/attention/sm90/forward_consumer.cuh"

// Forward attention where the queries of a tile of 64 see keys of three neighbouring tiles: windows
// of up to 64 keys to both sides, or of up to 128 to one. A block walks neighbouring tiles of one
// head, so that each tile of keys and values enters shared memory once, and consumer warpgroups
// take tiles of queries in turn. All scores of a row are there at once: the softmax is exact, in
// one pass. Nothing but inputs and results moves; the results are the same bits every time.
//
//   keys     ... j-2   j-1    j    j+1   j+2 ...     a ring that all warpgroups read
//   group 0           [      tile j     ]
//   group 1                 [     tile j+1    ]

namespace flashloom::sm90 {

/// A consumer warp's way through the ring of pairs of keys and values: it waits for every pair and
/// gives it back once, whether it needs it or not, so that no phase of a barrier passes unseen.
template <int kStages>
struct ForwardBandRing {
  uint64_t *full, *empty;
  uint32_t lane;
  uint32_t seen = 0;      // tiles waited for
  uint32_t returned = 0;  // tiles given back

  static __device__ __forceinline__ uint32_t stage(uint32_t tile) {
    return tile % static_cast<uint32_t>(kStages);
  }

  /// Waits for the tiles before `end`.
  __device__ __forceinline__ void see(uint32_t end) {
#pragma unroll 1
    for (; seen < end; ++seen) {
      cuda::mbarrier_wait(&full[stage(seen)], seen / kStages & 1, {"a consumer", "full"});
    }
  }

  /// Gives back the tiles before `end`, which have been seen. The warp has converged.
  __device__ __forceinline__ void give_back(uint32_t end) {
#pragma unroll 1
    for (; returned < end; ++returned) {
      if (lane == 0) {
        cuda::mbarrier_arrive(&empty[stage(returned)]);
      }
    }
  }

  /// Tiles before `end` that only others need.
  __device__ __forceinline__ void pass(uint32_t end) {
    see(end);
    __syncwarp();
    give_back(end);
  }
};

template <class Shape>
struct ForwardBandConsumer {
  using T = typename Shape::T;
  static constexpr int kScores = Shape::kTile / 2;
  static constexpr int kSteps = Shape::kDim / 16;

  const ForwardBandParams& params;
  const CUtensorMap* map;
  const ForwardBandShared<Shape>& shared;
  ForwardBandBarriers<Shape>& barriers;
  uint32_t lane;
  int32_t warp_row;  // the first of this warp's of a tile of queries
  ForwardBandRing<Shape::kStages> pairs;
  int32_t owed = -1;  // buffer of queries from which results are being sent

  __device__ __forceinline__ ForwardBandConsumer(const ForwardBandParams& of,
                                                 const CUtensorMap* out,
                                                 const ForwardBandShared<Shape>& memory)
      : params(of),
        map(out),
        shared(memory),
        barriers(memory.barriers()),
        lane(threadIdx.x % 32),
        warp_row(__shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x % 128 / 32 * 16), 0)),
        pairs{barriers.full, barriers.empty, lane} {}

  /// This warp's 16 rows of a tile of queries, as the first operand of a product.
  __device__ __forceinline__ void load_queries(uint32_t (&q)[4 * kSteps], const char* tile) const {
    const uint32_t row = static_cast<uint32_t>(warp_row) + lane % 16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t words[4];
      cuda::ldmatrix_x4(words,
                        cuda::shared_address(tile) +
                            cuda::swizzled_offset(row, 16 * step + 8 * (lane / 16), Shape::kTile));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[4 * step + i] = words[i];
      }
    }
  }

  static __device__ __forceinline__ void issue_scores(float (&scores)[kScores],
                                                      const uint32_t (&q)[4 * kSteps],
                                                      const char* k) {
    using namespace cuda;
    const uint64_t b = k_major_descriptor(shared_address(k));
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Wgmma<T, Shape::kTile>::template from_registers<Major::kReduced>(
          scores, q[4 * step], q[4 * step + 1], q[4 * step + 2], q[4 * step + 3],
          moved_descriptor(b, k_major_step(step, Shape::kTile)), step != 0);
    }
    wgmma_commit();
  }

  /// Sixteen columns of keys, a group, of which the 16 rows of warp kWarp may see some pair: since
  /// the first tile of keys is the first that row 0 sees something of and the last one the last of
  /// row 63, of these tiles the parts before and behind the diagonal are hidden.
  template <int kWarp>
  static __device__ constexpr bool may_see(int tile, int group) {
    return tile == 0 ? group >= kWarp : tile < kBandReach - 1 || group <= kWarp;
  }

  /// Hides what the rows `row` and `row` + 8 do not see of the tile of keys from `key` on; of what
  /// warp kWarp may see, or of the group on the diagonal alone.
  template <int kWarp, bool kDiagonal>
  __device__ __forceinline__ void mask(float (&scores)[kScores], int tile, const Sequence& sequence,
                                       int32_t row, int32_t key) const {
    using Consumer = ForwardConsumer<Shape>;
    const int32_t first = key + 2 * static_cast<int32_t>(lane % 4);
    uint32_t visible[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      visible[half] = Consumer::keys_before(sequence.key_end(row + 8 * half) - first) &
                      ~Consumer::keys_before(sequence.key_begin(row + 8 * half) - first);
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      if (kDiagonal ? i / 8 == kWarp : may_see<kWarp>(tile, i / 8)) {
        const uint32_t bit = 1u << (i / 4 * 2 + i % 2);
        scores[i] = (visible[i / 2 % 2] & bit) != 0 ? scores[i] : -INFINITY;
      }
    }
  }

  /// The exact softmax of warp kWarp's rows, but for its division: scores to `weights`, rounded,
  /// and `sum`, not rounded, both relative to `maximum`.
  template <int kWarp>
  __device__ __forceinline__ void soften(float (&scores)[kBandReach][kScores],
                                         uint32_t (&weights)[kBandReach][kScores / 2],
                                         float (&maximum)[2], float (&sum)[2],
                                         const Sequence& sequence, int32_t row,
                                         int32_t first_key) const {
    constexpr int32_t kTile = Shape::kTile;
    const int32_t own = row + static_cast<int32_t>(lane / 4);
    // All but the diagonal's groups are plain in the middle of a wide band.
    const int32_t begin = first_key + 16 * (kWarp + 1);
    const int32_t end = first_key + (kBandReach - 1) * kTile + 16 * kWarp;
    if (sequence.key_begin(row + 15) <= begin && sequence.key_end(row) >= end) {
      mask<kWarp, true>(scores[0], 0, sequence, own, first_key);
      mask<kWarp, true>(scores[kBandReach - 1], kBandReach - 1, sequence, own,
                        first_key + (kBandReach - 1) * kTile);
    } else {
#pragma unroll
      for (int i = 0; i < kBandReach; ++i) {
        mask<kWarp, false>(scores[i], i, sequence, own, first_key + i * kTile);
      }
    }
    float highest[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // two chains a row
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
        if (may_see<kWarp>(i, n / 8)) {
          float& chain = highest[n / 2 % 2 + 2 * (n % 2)];
          chain = fmaxf(chain, scores[i][n]);
        }
      }
    }
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maximum[half] = fmaxf(highest[half], highest[half + 2]);
      maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(0xffffffffu, maximum[half], 1));
      maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(0xffffffffu, maximum[half], 2));
      shift[half] = maximum[half] == -INFINITY ? 0 : maximum[half] * params.forward.scale_log2;
      sum[half] = 0;
    }
    const float scale = params.forward.scale_log2;
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
#pragma unroll
      for (int n = 0; n < kScores; n += 2) {
        const int half = n / 2 % 2;
        if (may_see<kWarp>(i, n / 8)) {
          const float even = cuda::exp2_fast(fmaf(scores[i][n], scale, -shift[half]));
          const float odd = cuda::exp2_fast(fmaf(scores[i][n + 1], scale, -shift[half]));
          weights[i][n / 2] = cuda::pack2<T>(even, odd);
          sum[half] += even + odd;
        } else {
          weights[i][n / 2] = 0;
        }
      }
      if (i + 1 < kBandReach) {
        // Zero, but ptxas cannot know: else it scales all scores first, and spills.
        shift[0] = fmaf(sum[0], 0.0f, shift[0]);
        shift[1] = fmaf(sum[1], 0.0f, shift[1]);
      }
    }
  }

  /// Gives the buffer of the last results back once they have left.
  __device__ __forceinline__ void settle() {
    if (owed >= 0 && lane == 0) {
      cuda::bulk_wait_read<0>();
      cuda::mbarrier_arrive(&barriers.q_empty[owed]);
    }
    owed = -1;
  }

  /// The item `item` of a segment, the block's `number`th; of its tiles of keys the first is the
  /// block's `key`th. Tiles of keys before `next` are not needed any more.
  __device__ __forceinline__ void run_item(const ForwardBandSegment& segment, int32_t item,
                                           uint32_t number, uint32_t key, uint32_t next) {
    using namespace cuda;
    const int32_t group = params.forward.problem.heads_per_key;
    const int32_t tile = item / group;
    const Sequence& sequence = segment.sequence;
    const int32_t row = tile * Shape::kTile;
    const int32_t own_row = row + warp_row + static_cast<int32_t>(lane / 4);
    pairs.pass(key);
    const uint32_t stage = number % static_cast<uint32_t>(Shape::kQStages);
    mbarrier_wait(&barriers.q_full[stage], number / Shape::kQStages & 1, {"a consumer", "q_full"});
    char* queries = shared.queries(stage);
    uint32_t q[4 * kSteps];
    load_queries(q, queries);
    settle();
    pairs.see(key + kBandReach);

    float scores[kBandReach][kScores];
    wgmma_hold(q);
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      wgmma_hold(scores[i]);
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      issue_scores(scores[i], q, shared.keys(pairs.stage(key + i)));
    }
    wgmma_wait<0>();
    wgmma_hold(q);
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      wgmma_hold(scores[i]);
    }
    float maximum[2], sum[2];
    uint32_t weights[kBandReach][kScores / 2];
    const int32_t first_key = (tile + params.shift) * Shape::kTile;
    switch (warp_row / 16) {
      case 0:
        soften<0>(scores, weights, maximum, sum, sequence, row + warp_row, first_key);
        break;
      case 1:
        soften<1>(scores, weights, maximum, sum, sequence, row + warp_row, first_key);
        break;
      case 2:
        soften<2>(scores, weights, maximum, sum, sequence, row + warp_row, first_key);
        break;
      default:
        soften<3>(scores, weights, maximum, sum, sequence, row + warp_row, first_key);
    }
    ForwardConsumer<Shape> rows;
#pragma unroll
    for (float& value : rows.out) {
      value = 0;
    }
    wgmma_hold(rows.out);
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      wgmma_hold(weights[i]);
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      issue_registers_by_tile<T, Shape::kDim, Shape::kTile>(
          rows.out, weights[i], shared_address(shared.values(pairs.stage(key + i))));
    }
    ForwardWork work = {};
    const int32_t head = item - tile * group;
    work.tile = {segment.batch, segment.head * group + head, row};
    work.sequence = sequence;
    work.lse = segment.lse + head * params.forward.lse_head;
    float inverse[2];
    rows.finish_rows(params.forward, work, own_row, lane, maximum, sum, inverse);
    wgmma_wait<0>();
    wgmma_hold(rows.out);
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      wgmma_hold(weights[i]);
    }
    pairs.give_back(next);
    rows.clear_empty(inverse);
    rows.rescale(inverse);
    send(rows, work, queries, stage);
  }

  /// Results leave from the place of the queries: the warp has read its rows.
  __device__ __forceinline__ void send(ForwardConsumer<Shape>& rows, const ForwardWork& work,
                                       char* queries, uint32_t stage) {
    using namespace cuda;
    constexpr uint32_t kPanel = panel_bytes(Shape::kTile);
    const uint32_t place =
        shared_address(queries) + static_cast<uint32_t>(warp_row) * kPanelRowBytes;
    rows.template stage<0, Shape::kPanels>(place, kPanel, lane);
    fence_async_shared();
    __syncwarp();
    const int32_t first = work.tile.row + warp_row;
    const bool packed = params.forward.problem.cu_query != nullptr;
    if (packed && first + 16 > work.sequence.query_rows) {
      copy_rows<T>(params.forward, work, first, 0, Shape::kPanels, place, kPanel, lane);
    } else if (lane == 0) {
#pragma unroll
      for (int p = 0; p < Shape::kPanels; ++p) {
        tma_store_4d(map, place + p * kPanel, p * 64, work.sequence.query_first + first,
                     work.tile.head, packed ? 0 : work.tile.batch);
      }
      bulk_commit();
    }
    __syncwarp();
    owed = static_cast<int32_t>(stage);
  }

  /// Every kGroups-th item, from `number` on.
  __device__ __forceinline__ void run(uint32_t number) {
    // Shuffles tell the compiler that warps do not diverge on these.
    const auto uniform = [](auto value) { return __shfl_sync(0xffffffffu, value, 0); };
    const int32_t group = params.forward.problem.heads_per_key;
    for (ForwardBandWalk walk;; walk.slot.advance()) {
      const ForwardBandSegment& segment = walk.wait(barriers, "a consumer");
      const int32_t first = uniform(segment.first);
      const int32_t end = uniform(segment.end);
      const uint32_t start = uniform(segment.number);
      const uint32_t key_start = uniform(segment.key_number);
      if (first == end) {
        pairs.pass(key_start);
        return;
      }
      const int32_t first_tile = first / group;
      for (; number < start + static_cast<uint32_t>(end - first); number += Shape::kGroups) {
        const auto item = first + static_cast<int32_t>(number - start);
        const uint32_t key = key_start + static_cast<uint32_t>(item / group - first_tile);
        // The next item's first tile of keys; another segment needs none of these.
        const int32_t following = item + Shape::kGroups;
        const int32_t steps =
            following < end ? min(following / group - item / group, kBandReach) : kBandReach;
        run_item(segment, item, number, key, key + static_cast<uint32_t>(steps));
      }
      __syncwarp();
      if (lane == 0) {
        walk.release(barriers);
      }
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward_kernel_band(const __grid_constant__ ForwardBandParams params,
                                  const __grid_constant__ CUtensorMap q,
                                  const __grid_constant__ CUtensorMap k,
                                  const __grid_constant__ CUtensorMap v,
                                  const __grid_constant__ CUtensorMap out) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const ForwardBandShared<Shape> shared{memory};
  ForwardBandBarriers<Shape>& barriers = shared.barriers();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    prefetch_tensor_map(&out);
    constexpr uint32_t kWarps = 4 * Shape::kGroups;
    init_ring(barriers.q_full, barriers.q_empty, 1, 4);
    init_ring(barriers.full, barriers.empty, 1, kWarps);
    // The thread that loads, the warp that clears, and the consumers read segments.
    init_ring(barriers.segment_full, barriers.segment_empty, 1, kWarps + 2);
    for (uint64_t& barrier : barriers.border) {
      mbarrier_init(&barrier, 1);
    }
    mbarrier_init_fence();
    begin_debug_block();
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const uint32_t warp = threadIdx.x / 32;
    if (warp == 0) {
      forward_band_find<Shape>(params, barriers);
    } else if (warp == 3) {
      forward_band_clear<Shape>(shared);
    } else if (threadIdx.x == 32) {
      forward_band_load<Shape>(params, &q, &k, &v, shared);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    ForwardBandConsumer<Shape>(params, &out, shared).run(static_cast<uint32_t>(warpgroup - 1));
    // Shared memory must outlive the copies out of it.
    bulk_wait<0>();
  }
}

}  // namespace flashloom::sm90
